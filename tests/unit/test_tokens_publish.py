"""Token files get their names in an order in which a stop at any moment leaves nothing that looks whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tokens_world import write_by_megatron, write_known

from cptron.cli import main
from cptron.errors import DataError
from cptron.tokens import publish as module
from cptron.tokens import sequence_writer
from cptron.tokens.index_layout import HEADER, bin_path, idx_path, loss_mask_path
from cptron.tokens.manifest import manifest_path
from cptron.tokens.merge import merge
from cptron.tokens.partial_file import PartialFile
from cptron.tokens.publish import publish, refuse_existing
from cptron.tokens.split import split
from cptron.tokens.split_plan import Contiguous
from cptron.tokens.token_files import TokenFiles

KINDS = [bin_path, idx_path, loss_mask_path, manifest_path]


class Stopped(Exception):
    """The machine is gone."""


@pytest.mark.parametrize("kind", KINDS)
def test_any_file_of_an_earlier_run_is_refused(kind: object, tmp_path: Path) -> None:
    """Also half of a pair; and so is any other file that is named."""
    path = kind(tmp_path / "b")  # type: ignore[operator]
    refuse_existing([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "other")
    path.touch()
    with pytest.raises(DataError, match=f"{path.name} exists and must not be lost"):
        refuse_existing([str(tmp_path / "a"), str(tmp_path / "b")])
    refuse_existing([str(tmp_path / "a")])
    with pytest.raises(DataError, match="exists"):
        refuse_existing([str(tmp_path / "a")], path)


def make(directory: Path) -> dict[str, Path]:
    """New files beside older ones of the same name, which had a mask and a manifest."""
    write_known(directory / "x", [[1, 2], [3]], [1, 0, 1])
    made = {kind: directory / f"new.{kind}" for kind in ("bin", "idx", "loss_mask")}
    for path in made.values():
        path.write_text("new")
    return made


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_stop_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Old and new are never mixed, and the same call again makes it good."""
    made, rename, done = make(tmp_path), Path.replace, list[Path]()

    def stop(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Stopped
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(Stopped):
            publish(str(tmp_path / "x"), made)
    assert not idx_path(tmp_path / "x").exists() and not manifest_path(tmp_path / "x").exists()
    assert loss_mask_path(tmp_path / "x").exists() == (renames == 2)
    publish(str(tmp_path / "x"), made)
    assert [kind(tmp_path / "x").exists() for kind in KINDS] == [True, True, True, False]
    assert idx_path(tmp_path / "x").read_text() == bin_path(tmp_path / "x").read_text() == "new"


def test_the_names_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is flushed once all names are there."""
    made, flushed = make(tmp_path), list[tuple[Path, bool]]()
    monkeypatch.setattr(
        module, "fsync_path", lambda path: flushed.append((path, idx_path(tmp_path / "x").exists()))
    )
    publish(str(tmp_path / "x"), made)
    assert flushed == [(tmp_path, True)]


@pytest.mark.parametrize("masked", [False, True])
def test_copied_files_are_durable_before_they_have_names(
    masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a merge publishes was forced to disk."""
    prefix = write_known(tmp_path / "a", [[1, 2], [3]], [1, 0, 1] if masked else None)
    synced, sync = set[str](), PartialFile.sync

    def record(file: PartialFile) -> None:
        sync(file)
        synced.add(file.path.name.removeprefix("out.").partition(".")[0])

    def check(prefix: str, made: Mapping[str, Path]) -> None:
        assert synced == ({"bin", "idx", "loss_mask"} if masked else {"bin", "idx"})
        assert set(made) == synced

    monkeypatch.setattr(PartialFile, "sync", record)
    monkeypatch.setattr(sequence_writer, "publish", check)
    merge([str(prefix)], str(tmp_path / "out"))
    assert synced


@pytest.mark.parametrize("name", ["./a", "link"])
def test_no_name_of_an_input_is_an_output(name: str, tmp_path: Path) -> None:
    """However it is spelled, it is not replaced by what is read from it."""
    prefix = write_known(tmp_path / "a", [[1, 2], [3]])
    for kind in (bin_path, idx_path, manifest_path):
        kind(tmp_path / "link").symlink_to(kind(prefix))
    output = f"{tmp_path}/{name}"
    with pytest.raises(DataError, match="must not be replaced"):
        merge([str(prefix)], output, overwrite=True)
    with pytest.raises(DataError, match="must not be replaced"):
        split(TokenFiles(prefix), output, Contiguous(("",), (0, 2)), overwrite=True)


def change(path: Path, offset: int, value: int) -> None:
    """Overwrite one 8-byte number."""
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = value.to_bytes(8, "little", signed=True)
    path.write_bytes(content)


@pytest.mark.parametrize(("border", "value"), [(0, 1), (1, 3), (1, -1), (2, 1 << 40), (3, 2)])
def test_damaged_borders_of_foreign_files_are_found(border: int, value: int, tmp_path: Path) -> None:
    """Without a manifest, whose hash would tell: borders that fall, or leave the sequences."""
    write_by_megatron(tmp_path / "a", [[[1]], [[2]], [[3]]])
    change(idx_path(tmp_path / "a"), HEADER.size + 12 * 3 + 8 * border, value)
    with pytest.raises(DataError, match="must rise from 0 to 3"):
        list(TokenFiles(tmp_path / "a").pieces())


def test_other_sizes_of_foreign_files_are_found(tmp_path: Path) -> None:
    """Tokens that are missing, or too many."""
    write_by_megatron(tmp_path / "a", [[[1]], [[2]], [[3]]])
    whole = bin_path(tmp_path / "a").read_bytes()
    for content in (whole[:-2], whole + b"xx"):
        bin_path(tmp_path / "a").write_bytes(content)
        with pytest.raises(DataError, match="its index requires 6"):
            TokenFiles(tmp_path / "a")


def test_a_glob_gives_the_parts_in_order(tmp_path: Path) -> None:
    """As their names sort; one that matches nothing is refused."""
    for number in (2, 0, 1):
        write_known(tmp_path / f"part-{number}", [[number]])
    out = str(tmp_path / "out")
    assert main(["merge", "--inputs", str(tmp_path / "part-*"), "--output-prefix", out]) == 0
    assert bin_path(out).read_bytes() == bytes([0, 0, 1, 0, 2, 0])
    assert main(["merge", "--inputs", str(tmp_path / "no-*"), "--output-prefix", out, "--overwrite"]) == 2
