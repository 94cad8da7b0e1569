"""What names on a command line mean, and how a corpus is shared out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens.inputs import Input, expand_inputs, partition_inputs


def touch(directory: Path, *names: str) -> None:
    """Small files, with the directories above them."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)


def names(inputs: list[Input], directory: Path) -> list[str]:
    """Paths below `directory`."""
    return [source.path.relative_to(directory).as_posix() for source in inputs]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.jsonl", "jsonl", "none"), ("a.json.gz", "jsonl", "gzip"), ("a.JSONL.ZST", "jsonl", "zstd"),
        ("a.txt", "text", "none"), ("a.md.zst", "text", "zstd"), ("a.parquet", "parquet", "none"),
        ("a.arrow", "arrow", "none"), ("part-0001", "jsonl", "none"), ("a.data.gz", "jsonl", "gzip"),
    ],
)  # fmt: skip
def test_suffixes_tell_the_kind(tmp_path: Path, name: str, kind: str, compression: str) -> None:
    """A file that is named is JSONL if nothing else is known."""
    touch(tmp_path, name)
    (source,) = expand_inputs([str(tmp_path / name)])
    assert (source.kind, source.compression) == (kind, compression)


@pytest.mark.parametrize("name", ["a.jsonl.xz", "a.zip", "a.tar.gz", "a.parquet.gz"])
def test_archives_are_refused(tmp_path: Path, name: str) -> None:
    """They would be read as lines of noise."""
    touch(tmp_path, name)
    with pytest.raises(DataError, match=r"must be .*plain"):
        expand_inputs([str(tmp_path / name)])


def test_directories_are_read_whole_and_in_order(tmp_path: Path) -> None:
    """Sorted by path; hidden files and what goes with data are left out."""
    touch(tmp_path, "b/2.jsonl.gz", "b/1.parquet", "a.jsonl", "b.txt", "c/d/e.jsonl.zst")
    touch(
        tmp_path,
        "README.md",
        "b/README.txt",
        "LICENSE",
        "_SUCCESS",
        "a.jsonl.md5",
        ".cache/x.jsonl",
        ".x.crc",
    )
    found = names(expand_inputs([str(tmp_path)]), tmp_path)
    assert found == ["a.jsonl", "b/1.parquet", "b/2.jsonl.gz", "b.txt", "c/d/e.jsonl.zst"]
    touch(tmp_path, "b/notes.doc")
    with pytest.raises(DataError, match=r"notes\.doc is of an unknown kind.*glob"):
        expand_inputs([str(tmp_path)])


def test_directory_without_data_is_refused(tmp_path: Path) -> None:
    """Nothing is not a corpus."""
    touch(tmp_path, "README.md")
    with pytest.raises(DataError, match="holds 0 files with data"):
        expand_inputs([str(tmp_path)])


def test_globs_and_order(tmp_path: Path) -> None:
    """Patterns in the order given, each sorted; a name with brackets that exists is a file."""
    touch(tmp_path, "b.jsonl", "a.jsonl", "x/c.jsonl", "[z].jsonl", "y/d.txt")
    found = expand_inputs(
        [str(tmp_path / "x/c.jsonl"), str(tmp_path / "[ab].jsonl"), str(tmp_path / "[z].jsonl")]
    )
    assert names(found, tmp_path) == ["x/c.jsonl", "a.jsonl", "b.jsonl", "[z].jsonl"]
    found = expand_inputs([str(tmp_path / "**/*.jsonl")])
    assert names(found, tmp_path) == ["[z].jsonl", "a.jsonl", "b.jsonl", "x/c.jsonl"]
    assert names(expand_inputs([str(tmp_path / "[xy]")]), tmp_path) == ["x/c.jsonl", "y/d.txt"]
    with pytest.raises(DataError, match="matches 0 files"):
        expand_inputs([str(tmp_path / "*.parquet")])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    """Also through a link."""
    touch(tmp_path, "a.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="2 times"):
        expand_inputs([str(tmp_path)])


def write_state(directory: Path, files: list[str], **more: object) -> None:
    """What `save_to_disk` leaves beside the Arrow files."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": "0", **more}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text("{}")


def test_hugging_face_dataset_is_its_states_files(tmp_path: Path) -> None:
    """In the state's order, without the caches beside them, also below another directory."""
    files = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]
    touch(tmp_path, *[f"set/{name}" for name in files], "set/cache-1234.arrow", "a.jsonl")
    write_state(tmp_path / "set", files)
    assert names(expand_inputs([str(tmp_path / "set")]), tmp_path) == [f"set/{name}" for name in files]
    assert names(expand_inputs([str(tmp_path)]), tmp_path) == ["a.jsonl", *[f"set/{name}" for name in files]]


@pytest.mark.parametrize(
    ("files", "more", "match"),
    [
        (["gone.arrow"], {}, "'gone.arrow', must be a file beside"),
        (["../other.arrow"], {}, "must be a file beside"),
        (["a.arrow"], {"_indices_data_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
    ],
)
def test_unusable_hugging_face_dataset(
    tmp_path: Path, files: list[str], more: dict[str, object], match: str
) -> None:
    """A missing shard or an index of rows would change the corpus."""
    touch(tmp_path, "other.arrow", "set/a.arrow")
    write_state(tmp_path / "set", files, **more)
    with pytest.raises(DataError, match=match):
        expand_inputs([str(tmp_path / "set")])


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_data_files": 3}'])
def test_damaged_state_is_an_error(tmp_path: Path, text: str) -> None:
    """Not a traceback."""
    write_state(tmp_path / "set", [])
    (tmp_path / "set/state.json").write_text(text)
    with pytest.raises(DataError, match=r"state\.json"):
        expand_inputs([str(tmp_path / "set")])


def test_dataset_with_splits_is_refused_by_name(tmp_path: Path) -> None:
    """Training on the test split is nobody's wish."""
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="holds the splits train, test"):
        expand_inputs([str(tmp_path)])


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=6), st.integers(1, 9))
def test_parts_cover_every_byte_once(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[bool, int]], count: int
) -> None:
    """Each byte of a plain file in exactly one part and in order, any other file in one; sizes as equal as can be."""
    directory = tmp_path_factory.mktemp("parts")
    inputs = []
    for number, (plain, size) in enumerate(files):
        path = directory / (f"{number}.jsonl" if plain else f"{number}.jsonl.gz")
        path.write_bytes(b"x" * size)
        inputs += expand_inputs([str(path)])
    parts = [partition_inputs(inputs, index, count) for index in range(count)]
    covered = [
        (source.path, byte)
        for part in parts
        for source in part
        for byte in range(source.start_byte, source.start_byte + source.stored_bytes)
    ]
    assert covered == [(source.path, byte) for source in inputs for byte in range(source.stored_bytes)]
    packed = [source.path for part in parts for source in part if source.compression == "gzip"]
    assert packed == [source.path for source in inputs if source.compression == "gzip"]
    if all(plain for plain, _ in files):
        sizes = [sum(source.stored_bytes for source in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_impossible_part(index: int, count: int) -> None:
    """Counted from 0."""
    with pytest.raises(DataError, match=f"partition {index} of {count}"):
        partition_inputs([], index, count)


def test_a_glob_leaves_out_no_directory(tmp_path: Path) -> None:
    """Beside files it is read whole; once only where the files in it match as well, as with `**`."""
    touch(tmp_path, "a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl")
    (tmp_path / "empty").mkdir()
    wanted = ["a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"]
    for pattern in ("*", "**", "**/*"):
        assert names(expand_inputs([str(tmp_path / pattern)]), tmp_path) == wanted
    with pytest.raises(DataError, match="empty holds 0 files with data"):
        expand_inputs([str(tmp_path / "e*")])


@pytest.mark.parametrize("pattern", ["", "*", "gone.jsonl"])
def test_a_link_to_nothing_is_an_error(pattern: str, tmp_path: Path) -> None:
    """In a directory, among a glob's matches, or named."""
    touch(tmp_path, "a.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl is a link to nothing, must be a file; remove it"):
        expand_inputs([str(tmp_path / pattern)])
