"""Readers against Python's own `json`, `gzip` and line splitting: every record once, good or rejected, wherever
reading resumes and however a file is split or compressed."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens import read_lines, read_stored, read_tables
from cptron.tokens.inputs import Input, expand_inputs, partition_inputs
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import MAX_RAW_BYTES, Position, RawBlock, Reject

START = Position(0, 0, 0)
LIMIT = 60
ROWS = [{"text": f"row {number} é", "id": number} for number in range(23)]

Outcome = tuple[str, int, object]
"""File, record number, and the values or the reason of the reject."""


def outcomes(
    blocks: Iterator[RawBlock], keys: Sequence[str] = ("text",), chat: bool = False
) -> list[Outcome]:
    """Everything the blocks hold, in order; checks that the counts agree."""
    found: list[Outcome] = []
    for block in blocks:
        parsed = block.parse(keys, chat=chat)
        assert parsed.num_records == len(parsed.values) + len(parsed.rejects)
        texts = [value for record in parsed.values for value in record if isinstance(value, bytes)]
        assert parsed.text_bytes == sum(map(len, texts))
        good = zip(parsed.numbers, parsed.values, strict=True)
        here: list[Outcome] = [(block.path, number, values) for number, values in good]
        here += [(reject.path, reject.record, reject.reason) for reject in parsed.rejects]
        found += sorted(here, key=lambda outcome: outcome[1])
    return found


def read(path: Path, **options: Any) -> list[object]:
    """Values and reasons of one file, in order of its records."""
    blocks = read_blocks(expand_inputs([str(path)]), START, max_record_bytes=options.pop("limit", 1 << 30))
    found = outcomes(blocks, **options)
    assert [number for _, number, _ in found] == list(range(1, len(found) + 1))
    return [outcome for _, _, outcome in found]


def rejects_of(path: Path, limit: int = 1 << 30) -> list[Reject]:
    """The rejects of one file."""
    blocks = read_blocks(expand_inputs([str(path)]), START, max_record_bytes=limit)
    return [reject for block in blocks for reject in block.parse(["text"], chat=False).rejects]


def reference(data: bytes, limit: int) -> list[object]:
    """What JSONL bytes hold, by the standard library, a line at a time."""
    found: list[object] = []
    for line in io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")):
        found.append(reference_line(line.removesuffix(b"\n"), limit))
    return found


def reference_line(line: bytes, limit: int) -> object:
    """Values or reason of one line."""
    if len(line) > limit:
        return "too_long"
    try:
        content = json.loads(line.decode())
    except UnicodeDecodeError:
        return "bad_utf8"
    except ValueError:
        return "bad_json"
    if not isinstance(content, dict):
        return "not_an_object"
    if "text" not in content:
        return "missing_key"
    if not isinstance(content["text"], str):
        return "not_a_string"
    if "\0" in content["text"]:
        return "nul"
    try:
        return (content["text"].encode(),)
    except UnicodeEncodeError:
        return "bad_utf8"


def compress(data: bytes, suffix: str, pieces: int = 1) -> bytes:
    """`data` as several gzip members or zstd frames, or as it is."""
    pack: Callable[[bytes], bytes] = {
        ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress, "": bytes
    }[suffix]  # fmt: skip
    bounds = [len(data) * number // pieces for number in range(pieces + 1)]
    return b"".join(pack(data[begin:end]) for begin, end in itertools.pairwise(bounds))


LINE = st.sampled_from(
    [
        b'{"text": "abc"}', b'{"text": "\xc3\xa9", "id": NaN}', b'{"text": ""}', b'{"text": "a"}\r', b"", b"\r", b" ",
        b'{"text": "a\\u0000b"}', b'{"text": "\\ud800"}', b'{"text": "ok", "x": "\\ud800"}', b'{"text": 3}',
        b'{"text": "\xff"}', b'{"text": null}', b"[1]", b'{"te', b'{"id": 1}', b'{"text": "' + b"long" * 20 + b'"}',
        b'{"text": "\\ud83d\\ude00", "text2": 1e999}', b'{"text": "' + b"x" * 48 + b'"}', b"\xef\xbb\xbf{}",
    ]
)  # fmt: skip
CONTENTS = st.builds(
    lambda mark, lines, end: mark + b"\n".join(lines) + end,
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(LINE, max_size=25),
    st.sampled_from([b"", b"\n"]),
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and blocks of a few bytes, so that every boundary is met."""
    for module, name, value in (
        (read_stored, "CHUNK_BYTES", 37),
        (read_stored, "_GZIP_STEP_BYTES", 11),
        (read_stored, "_ZSTD_STEP_BYTES", 5),
        (read_lines, "CHUNK_BYTES", 13),
        (read_lines, "_BLOCK_RECORDS", 3),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_are_read_as_python_reads_them_wherever_one_resumes(suffix: str) -> None:
    """All records, equal to the reference's; from each block's end on, exactly those that are left."""

    @settings(max_examples=60, deadline=None)
    @given(CONTENTS, st.integers(1, 3))
    @example(b"\xef\xbb\xbf", 1)
    @example(b"\n", 1)
    @example(b'{"text": "' + b"long" * 99 + b'"}', 1)
    def check(data: bytes, members: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            names = [Path(directory) / f"{letter}.jsonl{suffix}" for letter in "ab"]
            for path in names:
                path.write_bytes(compress(data, suffix, members))
            inputs = expand_inputs([directory])
            blocks = list(read_blocks(inputs, START, max_record_bytes=LIMIT))
            whole = outcomes(iter(blocks))
            assert [outcome for *_, outcome in whole] == reference(data, LIMIT) * 2
            numbers = range(1, len(whole) // 2 + 1)
            assert [number for _, number, _ in whole] == [*numbers, *numbers]
            done = 0
            for block in blocks:
                done += block.parse(["text"], chat=False).num_records
                at = Position(**json.loads(json.dumps(asdict(block.end))))
                assert outcomes(read_blocks(inputs, at, max_record_bytes=LIMIT)) == whole[done:]
                assert 0 <= block.stored_bytes_read <= inputs[0].stored_bytes

    check()


@pytest.mark.usefixtures("small_chunks")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CONTENTS, min_size=1, max_size=3), st.integers(1, 7))
@example([b"\xef\xbb\xbf{}\n{}"], 7)
@example([b"", b""], 3)
def test_parts_hold_every_record_once(contents: list[bytes], count: int) -> None:
    """Partitions one after the other are the whole, with the same line numbers; each resumes on its own."""
    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate(contents):
            suffix = ".gz" if number == 1 else ""
            (Path(directory) / f"{number}.jsonl{suffix}").write_bytes(compress(data, suffix))
        inputs = expand_inputs([directory])
        whole = outcomes(read_blocks(inputs, START, max_record_bytes=LIMIT))
        found: list[Outcome] = []
        for index in range(count):
            part = partition_inputs(inputs, index, count)
            blocks = list(read_blocks(part, START, max_record_bytes=LIMIT))
            here = outcomes(iter(blocks))
            found += here
            done = 0
            for block in blocks:
                done += block.parse(["text"], chat=False).num_records
                assert outcomes(read_blocks(part, block.end, max_record_bytes=LIMIT)) == here[done:]
        assert found == whole


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("members", [1, 3])
def test_cut_off_file_keeps_its_whole_lines_and_rejects_one_record(
    tmp_path: Path, suffix: str, members: int
) -> None:
    """However many bytes are left: good lines, then "truncated" with the number of the line; resuming ends."""
    data = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    stored = compress(data, suffix, members)
    bounds = [len(data) * number // members for number in range(members + 1)]
    member_sizes = [len(compress(data[begin:end], suffix)) for begin, end in itertools.pairwise(bounds)]
    ends = set(itertools.accumulate(member_sizes))
    path = tmp_path / f"cut.jsonl{suffix}"
    for num_bytes in range(0, len(stored)):
        path.write_bytes(stored[:num_bytes])
        if num_bytes in ends:
            continue  # cut between two members: nothing tells
        *good, last = read(path)
        assert last == "truncated"
        assert good == [(row["text"].encode(),) for row in ROWS[: len(good)]]  # type: ignore[attr-defined]
        inputs = expand_inputs([str(path)])
        *_, block = read_blocks(inputs, START, max_record_bytes=99)
        assert list(read_blocks(inputs, block.end, max_record_bytes=99)) == []
    if suffix == ".gz":  # zstd gives nothing of a block of 128 KiB that is not whole
        assert len(good) >= len(ROWS) - 1


def test_damage_inside_gzip_loses_nothing_before_it(tmp_path: Path) -> None:
    """A flipped byte in the second member; the first member's lines, in several chunks, all come."""
    lines = [json.dumps({"text": f"{number} {number * 7919}"}).encode() + b"\n" for number in range(120_000)]
    second = bytearray(gzip.compress(b'{"text": "after"}\n' * 50))
    second[4:12] = b"\xff" * 8
    second[-8] ^= 1
    path = tmp_path / "damaged.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(lines)) + bytes(second))
    found = read(path)
    assert found[-1] == "truncated"
    assert found[: len(lines)] == [(json.loads(line)["text"].encode(),) for line in lines]


def test_gzip_padding_and_zstd_skippable_frames_are_no_records(tmp_path: Path) -> None:
    """Zeros after a gzip member; frames without content, as pzstd writes them."""
    data = b'{"text": "a"}\n'
    padded, skippable = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.zst"
    padded.write_bytes(gzip.compress(data) + b"\0" * 999 + gzip.compress(data) + b"\0" * 9)
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    skippable.write_bytes(frame + compress(data, ".zst") + frame + compress(data, ".zst") + frame)
    assert read(padded) == read(skippable) == [(b"a",), (b"a",)]
    garbage = tmp_path / "c.jsonl.gz"
    garbage.write_bytes(gzip.compress(data) + b"garbage")
    assert read(garbage) == [(b"a",), "truncated"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, suffix: str) -> None:
    """40 MB between two good lines: one reject with its length, and memory for a few chunks only."""
    data = b'{"text": "a"}\n{"text": "' + b"0123456789" * 4_000_000 + b'"}\n{"text": "b"}'
    path = tmp_path / f"long.jsonl{suffix}"
    path.write_bytes(compress(data, suffix))
    long_line = len(data) - len(b'{"text": "a"}\n\n{"text": "b"}')
    del data
    tracemalloc.start()
    assert read(path, limit=1000) == [(b"a",), "too_long", (b"b",)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    (reject,) = rejects_of(path, 1000)
    assert (reject.path, reject.record, len(reject.raw)) == (str(path), 2, MAX_RAW_BYTES)
    assert f"{long_line} bytes" in reject.detail and "1000" in reject.detail


def test_blocks_are_bounded(tmp_path: Path) -> None:
    """Neither many bytes nor many lines make a block large."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": ""}\n' * 30_000 + b'{"text": "%s"}\n' % (b"x" * 700_000) * 9)
    sizes = []
    for block in read_blocks(expand_inputs([str(path)]), START, max_record_bytes=1 << 20):
        parsed = block.parse(["text"], chat=False)
        sizes.append((parsed.num_records, parsed.text_bytes))
    assert sum(count for count, _ in sizes) == 30_009
    assert max(count for count, _ in sizes) <= 4096
    assert max(size for _, size in sizes) <= 3 << 20


def test_several_keys_and_chats(tmp_path: Path) -> None:
    """One value per key, in the order asked for; chats are Python objects whose strings are checked too."""
    path = tmp_path / "a.jsonl"
    chat = [{"role": "user", "content": "é"}]
    rows = [{"a": "x", "b": chat}, {"a": "x", "b": 3}, {"a": "x", "b": [{"content": "\0"}]}]
    lines = [json.dumps(row) for row in rows] + ['{"a": "x", "b": ["\\ud800"], "c": NaN}', '{"b": "y"}']
    path.write_text("\n".join(lines))
    assert read(path, keys=("b", "a"), chat=True) == [
        (chat, b"x"), "not_a_string", "nul", "bad_utf8", "missing_key"
    ]  # fmt: skip
    assert read(path, keys=("b",)) == ["not_a_string"] * 4 + [(b"y",)]
    assert rejects_of(path)[0].detail == "there is no key 'text', only: a, b"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_one_record(tmp_path: Path, suffix: str) -> None:
    """With its line ends; empty ones too; damaged ones are rejected."""
    contents = {
        "a": (b"\xef\xbb\xbfone\r\ntwo\n", (b"one\r\ntwo\n",)), "b": (b"", (b"",)), "c": (b"\xff", "bad_utf8"),
        "d": (b"a\0b", "nul"), "e": (b"x" * 101, "too_long"), "f": (b"x" * 100, (b"x" * 100,)),
    }  # fmt: skip
    for name, (data, _) in contents.items():
        (tmp_path / f"{name}.txt{suffix}").write_bytes(compress(data, suffix))
    inputs = expand_inputs([str(tmp_path)])
    blocks = list(read_blocks(inputs, START, max_record_bytes=100))
    assert [outcome for *_, outcome in outcomes(iter(blocks))] == [want for _, want in contents.values()]
    rest = outcomes(read_blocks(inputs, blocks[2].end, max_record_bytes=100))
    assert rest == outcomes(iter(blocks[3:]))
    with pytest.raises(DataError, match="one key"):
        blocks[0].parse(["text", "title"], chat=False)


def test_cut_off_text_is_rejected(tmp_path: Path) -> None:
    """Half a document is no document."""
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text " * 99)[:-9])
    assert read(path) == ["truncated"]


# --- tables

TEXTS = ["a", "", None, "é" * 40, "a\0b", "x" * 99, "end", *[f"row {number}" for number in range(3000)]]
EXPECTED: list[object] = [
    (b"a",), (b"",), "not_a_string", (("é" * 40).encode(),), "nul", "too_long", (b"end",),
    *[(f"row {number}".encode(),) for number in range(3000)],
]  # fmt: skip


def write_parquet(path: Path, column: Any, **options: Any) -> Path:
    """A table with the text column between others."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": list(range(len(column))), "text": column, "other": ["o"] * len(column)})
    parquet.write_table(table, path, **options)
    return path


def write_arrow(path: Path, column: Any, stream: bool, batch_rows: int) -> Path:
    """An Arrow file as `datasets` saves it (stream), or the random access format."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": column, "id": list(range(len(column)))})
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def every_table(directory: Path) -> Iterator[Path]:
    """The same texts in every form a table comes in."""
    pyarrow = pytest.importorskip("pyarrow")
    column = pyarrow.array(TEXTS)
    yield write_parquet(directory / "a.parquet", column, row_group_size=700)
    yield write_parquet(directory / "b.parquet", column.cast(pyarrow.large_string()), compression="zstd")
    yield write_parquet(directory / "c.parquet", column.dictionary_encode(), row_group_size=500)
    yield write_parquet(directory / "d.parquet", column.cast(pyarrow.binary()))
    yield write_arrow(directory / "e.arrow", column, stream=True, batch_rows=1000)
    yield write_arrow(directory / "f.arrow", column.dictionary_encode(), stream=False, batch_rows=512)


@pytest.mark.parametrize("keys", [None, ("text",)])
def test_tables_hold_the_same_records_wherever_one_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Sequence[str] | None
) -> None:
    """Each form, whole and from the end of each block."""
    monkeypatch.setattr(read_tables, "_BLOCK_BYTES", 5000)
    for path in every_table(tmp_path):
        inputs = expand_inputs([str(path)])
        blocks = list(read_blocks(inputs, START, max_record_bytes=90, keys=keys))
        whole = outcomes(iter(blocks))
        assert [outcome for *_, outcome in whole] == EXPECTED, path
        assert [number for _, number, _ in whole] == list(range(1, len(EXPECTED) + 1))
        assert len(blocks) > 4
        done = 0
        for number, block in enumerate(blocks):
            done += block.parse(["text"], chat=False).num_records
            assert 0 <= block.stored_bytes_read <= inputs[0].stored_bytes
            if number % 7 == 0:
                rest = read_blocks(inputs, block.end, max_record_bytes=90, keys=keys)
                assert outcomes(rest) == whole[done:]


def test_text_columns_that_are_not_utf8_are_rejected_by_row(tmp_path: Path) -> None:
    """Arrow does not look into strings."""
    pyarrow = pytest.importorskip("pyarrow")
    raw = pyarrow.array([b"good", b"\xff\xfe", b"too"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    path = write_arrow(tmp_path / "a.arrow", column, stream=True, batch_rows=9)
    assert read(path) == [(b"good",), "bad_utf8", (b"too",)]


def test_chat_columns(tmp_path: Path) -> None:
    """Lists of structs come as lists of dicts."""
    chats = [[{"role": "user", "content": "é"}], None, [{"role": "user", "content": "a\0"}], []]
    path = write_parquet(tmp_path / "a.parquet", chats)
    assert read(path, chat=True) == [(chats[0],), "not_a_string", "nul", ([],)]
    with pytest.raises(DataError, match=r"list<.*must be a string"):
        read(path)


def test_missing_and_unusable_columns_are_errors(tmp_path: Path) -> None:
    """Named when the file is opened, or when a block is parsed."""
    path = write_parquet(tmp_path / "a.parquet", [1, 2])
    inputs = expand_inputs([str(path)])
    with pytest.raises(DataError, match="no column 'body', only id, text, other"):
        list(read_blocks(inputs, START, max_record_bytes=9, keys=["body"]))
    with pytest.raises(DataError, match="no column 'body'"):
        read(path, keys=("body",))
    with pytest.raises(DataError, match="int64 in column 'text'"):
        read(path)


def test_damaged_tables_are_errors(tmp_path: Path) -> None:
    """Cut off anywhere, also exactly between two Arrow batches."""
    pyarrow = pytest.importorskip("pyarrow")
    column = pyarrow.array(["some text"] * 3000)
    for path in (
        write_parquet(tmp_path / "a.parquet", column),
        write_arrow(tmp_path / "b.arrow", column, stream=True, batch_rows=100),
        write_arrow(tmp_path / "c.arrow", column, stream=False, batch_rows=100),
    ):
        stored = path.read_bytes()
        assert len(read(path)) == 3000
        for num_bytes in (0, 3, 7, len(stored) // 2, len(stored) - 8, len(stored) - 1):
            path.write_bytes(stored[:num_bytes])
            with pytest.raises(DataError, match=rf"{path.name} must .* copy"):
                read(path)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """It may vanish between listing and reading."""
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read"):
        list(read_blocks([Input(tmp_path / "gone.jsonl", "jsonl")], START, max_record_bytes=9))


def test_what_stands_beside_a_chat_is_not_lost(tmp_path: Path) -> None:
    """Bedrock's system text is a key of its own; a table has the column for every row, perhaps null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": [{"text": "hi"}]}]
    records = [{"messages": turns, "system": [{"text": "be brief"}], "id": 1}, {"messages": turns, "id": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        inputs = expand_inputs([str(tmp_path / name)])
        blocks = read_blocks(inputs, Position(0, 0, 0), max_record_bytes=1 << 20, keys=["messages"])
        values = [value for block in blocks for value in block.parse(["messages"], chat=True).values]
        assert values == [({"messages": turns, "system": [{"text": "be brief"}]},), (turns,)]


def test_chats_are_what_python_reads(tmp_path: Path) -> None:
    """Integers beyond 64 bits are exact, which a template may write."""
    line = (
        '{"messages": [{"role": "user", "content": "a", "n": [18446744073709551616, -9223372036854775809]}]}'
    )
    (tmp_path / "a.jsonl").write_text(line)
    assert read(tmp_path / "a.jsonl", keys=("messages",), chat=True) == [(json.loads(line)["messages"],)]


def test_names_of_keys_in_chats_are_checked(tmp_path: Path) -> None:
    """A template may write them."""
    messages = [{"role": "user", "content": "a", "a\0b": 1}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    assert read(tmp_path / "a.jsonl", keys=("messages",), chat=True) == ["nul"]


def test_chats_in_tables_have_a_length(tmp_path: Path) -> None:
    """All their strings in UTF-8, the system text beside them included; maps are checked as well."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [("é" * 10, ""), ("é" * 11, ""), ("é" * 10, "x" * 6), ("\0", "")]
    chats = [[{"role": "user", "content": text, "pairs": [("k", "v")]}] for text, _ in rows]
    pairs = pyarrow.map_(pyarrow.string(), pyarrow.string())
    fields = [("role", pyarrow.string()), ("content", pyarrow.string()), ("pairs", pairs)]
    column = pyarrow.array(chats, pyarrow.list_(pyarrow.struct(fields)))
    table = pyarrow.table({"messages": column, "system": [system for _, system in rows]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", keys=("messages",), chat=True, limit=26)
    assert found[1:] == ["too_long", "too_long", "nul"] and found[0] != "too_long"
    chats[0][0].update(content="a", pairs=[("k", "\0")])
    table = pyarrow.table({"messages": pyarrow.array(chats[:1], column.type)})
    parquet.write_table(table, tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", keys=("messages",), chat=True) == ["nul"]


def test_a_file_that_is_no_gzip_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """The remedy is another; half of the first two bytes is a file that was cut off."""
    path = tmp_path / "a.jsonl.gz"
    for data, message in (
        (b'{"text": "a"}', "not gzip, though its name says so; rename"),
        (b"\x1f", "too early"),
    ):
        path.write_bytes(data)
        (reject,) = rejects_of(path)
        assert reject.reason == "truncated" and message in reject.detail


@pytest.mark.parametrize("window_log", [27, 31])
def test_zstd_frames_with_long_windows_are_read(window_log: int, tmp_path: Path) -> None:
    """`zstd --long=31`, beyond what the library takes by default."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(stream.compress(b'{"text": "a"}\n') + stream.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << window_log
    assert read(path) == [(b"a",)]
