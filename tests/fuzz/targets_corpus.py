"""Targets: what `preprocess` and `eval` read texts from: JSONL, text, gzip, zstd, Parquet, Arrow, saved datasets.

Seeds come from Python's json and gzip, zstandard and pyarrow; results are held against a plain reading of the same
bytes by these.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard
from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_json, mutate_lines
from fuzz_target import Seed, Target

from cptron.evaluate import reference
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position

MAX_RECORD_BYTES = 1 << 20
TEXTS = ["a", "größer", "", "line\nbreak", "x" * 300, "é\u2028b", "tab\t", "1"]
LINES = "".join(json.dumps({"text": text, "n": number}) + "\n" for number, text in enumerate(TEXTS)).encode()
OTHER = "".join(
    json.dumps({"id": [1, {"a": None}], "text": text}, ensure_ascii=False) + "\n" for text in TEXTS
).encode()
CHATS = "".join(
    json.dumps(
        {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}],
            "system": "s",
        }
    )
    + "\n"
    for text in TEXTS
).encode()


def _files(root: Path, files: Mapping[str, bytes]) -> list[Seed]:
    seeds = []
    for number, (name, content) in enumerate(files.items()):
        directory = root / str(number)
        directory.mkdir()
        (directory / name).write_bytes(content)
        seeds.append(Seed(directory, name))
    return seeds


def read_texts(directory: Path) -> Any:
    """Records and rejects of the one file."""
    (path,) = directory.iterdir()
    return _read(path, ["text"], chat=False)


def _read(path: Path, keys: Sequence[str], *, chat: bool) -> Any:
    good, bad = [], []
    inputs = expand_inputs([str(path)])
    for block in read_blocks(inputs, Position(0, 0, 0), max_record_bytes=MAX_RECORD_BYTES, keys=keys):
        parsed = block.parse(keys, chat=chat)
        good += [
            (number, repr(value[0]) if chat else value[0])
            for number, value in zip(parsed.numbers, parsed.values, strict=True)
        ]
        bad += [(reject.record, reject.reason) for reject in parsed.rejects]
        for reject in parsed.rejects:
            assert len(reject.detail.splitlines()) <= 1, reject.detail
    return good, bad


def plain_bytes(path: Path) -> bytes | None:
    """The uncompressed bytes by the standard library or zstandard; None where these do not read all of it."""
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            return gzip.decompress(content)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True).read()
    except (OSError, EOFError, zlib.error, struct.error, zstandard.ZstdError):
        return None
    return content


def check_lines(directory: Path, value: Any) -> str | None:
    """Every good record is what json makes of that line; every line is a good record or a reject."""
    (path,) = directory.iterdir()
    good, bad = value
    plain = plain_bytes(path)
    if plain is None:
        return None
    lines = plain.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = lines[:-1] if not lines[-1] else lines
    numbers = sorted([number for number, _ in good] + [number for number, _ in bad])
    if numbers != list(range(1, len(lines) + 1)) and not any(reason == "truncated" for _, reason in bad):
        return f"lines that are neither read nor refused: {numbers} of {len(lines)}"
    for number, text in good:
        expected = json.loads(lines[number - 1].decode())["text"].encode()
        if text != expected:
            return f"other text than json reads: line {number}: {text[:40]!r} for {expected[:40]!r}"
    return None


def check_table(directory: Path, value: Any) -> str | None:
    """Rows as pyarrow reads the whole table at once."""
    (path,) = directory.iterdir()
    good, bad = value
    try:
        if path.suffix == ".parquet":
            column = pyarrow.parquet.read_table(path, columns=["text"], use_threads=False).column("text")
        else:
            with pyarrow.memory_map(str(path)) as mapped:
                head = mapped.read(6)
                mapped.seek(0)
                reader = (
                    pyarrow.ipc.open_file(mapped) if head == b"ARROW1" else pyarrow.ipc.open_stream(mapped)
                )
                column = reader.read_all().column("text")
        rows = column.cast(pyarrow.large_binary()).to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError):
        return None
    if len(rows) != len(good) + len(bad):
        return f"other rows than pyarrow reads: {len(good) + len(bad)} for {len(rows)}"
    wrong = [number for number, text in good if rows[number - 1] != text]
    return f"other texts than pyarrow reads: rows {wrong}" if wrong else None


def read_chats(directory: Path) -> Any:
    """Chats with what stands beside them."""
    (path,) = directory.iterdir()
    return _read(path, ["messages"], chat=True)


def read_reference(directory: Path) -> Any:
    """Documents as `cptron eval --hugging-face` reads them."""
    (path,) = directory.iterdir()
    reference.MAX_LINE_CHARACTERS = MAX_RECORD_BYTES
    return [tuple(document) for document in reference.documents(path)]


def check_reference(directory: Path, value: Any) -> str | None:
    """Texts by json, line by line."""
    (path,) = directory.iterdir()
    plain = plain_bytes(path)
    if plain is None:
        return None
    lines = plain.decode("utf-8-sig").split("\n")
    expected = [json.loads(line)["text"] for line in (lines[:-1] if not lines[-1] else lines)]
    return None if [text for text, _, _ in value] == expected else "other texts than json reads"


def make_gzip(root: Path) -> list[Seed]:
    """One member, and two."""
    return _files(
        root,
        {
            "a.jsonl.gz": gzip.compress(LINES, mtime=0),
            "b.jsonl.gz": gzip.compress(OTHER, mtime=0) + gzip.compress(LINES, mtime=0),
        },
    )


def make_zstd(root: Path) -> list[Seed]:
    """With and without size and checksum, and two frames."""
    pack = zstandard.ZstdCompressor(write_checksum=True).compress
    bare = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return _files(
        root,
        {
            "a.jsonl.zst": pack(LINES),
            "b.jsonl.zst": bare.compress(OTHER) + bare.flush(),
            "c.jsonl.zst": pack(LINES) + pack(OTHER),
        },
    )


def _zeros(compressor: Any) -> bytes:
    piece, out = bytes(1 << 20), []
    for _ in range(192):
        out.append(compressor.compress(piece))
    return b"".join([*out, compressor.flush()])


def planted_gzip(_: Path) -> Mapping[str, bytes]:
    """192 MiB of zeros in one line, and gzip within gzip."""
    bomb = _zeros(zlib.compressobj(9, zlib.DEFLATED, 31))
    return {
        "bomb": bomb,
        "bomb within": gzip.compress(bomb, mtime=0),
        "many empty members": gzip.compress(b"", mtime=0) * 3000,
    }


def planted_zstd(_: Path) -> Mapping[str, bytes]:
    """The same, and frames that declare a window or a size that no machine has."""
    bomb = _zeros(zstandard.ZstdCompressor(level=19).compressobj())
    wide = b"\x28\xb5\x2f\xfd\x00" + b"\xa8" + b"\x01\x00\x00"
    huge = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**63) + b"\x01\x00\x00"
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", 2**32 - 1)
    return {"bomb": bomb, "window of 2 GiB": wide, "content of 2^63": huge, "frame to skip of 4 GiB": skipped}


def make_parquet(root: Path) -> list[Seed]:
    """Plain, dictionary and compressed columns, with nulls, in several row groups."""
    seeds = []
    for name, options in (
        ("plain", {"compression": "none", "use_dictionary": False}),
        ("packed", {"compression": "zstd", "row_group_size": 3}),
        ("snappy", {"compression": "snappy", "data_page_version": "2.0"}),
        ("checked", {"compression": "gzip", "write_page_checksum": True}),
    ):
        (root / name).mkdir()
        table = pyarrow.table({"n": list(range(9)), "text": [*TEXTS, None]})
        pyarrow.parquet.write_table(table, root / name / "a.parquet", **options)
        seeds.append(Seed(root / name, "a.parquet"))
    return seeds


def planted_parquet(directory: Path) -> Mapping[str, bytes]:
    """One long text in a dictionary, which a hundred thousand rows refer to; and a long run of nulls."""
    found = {}
    texts = pyarrow.array(["x" * (1 << 16)])
    same = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1200, pyarrow.int32()), texts)
    for name, column in (
        ("one text in all rows", same),
        ("nulls", pyarrow.nulls(200_000, pyarrow.string())),
    ):
        path = directory / "planted.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd")
        found[name] = path.read_bytes()
        path.unlink()
    return found


def make_arrow(root: Path) -> list[Seed]:
    """A stream and a file of two batches, with several types of text."""
    seeds = []
    columns = {
        "utf8": pyarrow.string(),
        "large": pyarrow.large_string(),
        "dict": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }
    for kind, column in columns.items():
        table = pyarrow.table({"text": pyarrow.array(TEXTS, pyarrow.string()).cast(column)})
        for form, opener in (("stream", pyarrow.ipc.new_stream), ("file", pyarrow.ipc.new_file)):
            directory = root / f"{kind}_{form}"
            directory.mkdir()
            with opener(str(directory / "a.arrow"), table.schema) as writer:
                writer.write_table(table.slice(0, 5))
                if kind != "dict":
                    writer.write_table(table.slice(5))
            seeds.append(Seed(directory, "a.arrow"))
    return seeds


def make_dataset(root: Path) -> list[Seed]:
    """A saved Hugging Face dataset: its state names the files."""
    data = make_arrow(root)[0].path.read_bytes()
    directory = root / "dataset"
    directory.mkdir()
    (directory / "a.arrow").write_bytes(data)
    (directory / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": "a.arrow"}], "_split": "train", "_format_type": None}
    (directory / "state.json").write_text(json.dumps(state))
    return [Seed(directory, "state.json")]


def read_dataset(directory: Path) -> Any:
    """Its records."""
    return _read(directory, ["text"], chat=False)


def mutate_compressed(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to the packed bytes, or to the lines before they are packed."""
    if draw.random() < 0.6:
        return mutate_bytes(draw, content, others)
    lines = mutate_lines(draw, draw.choice((LINES, OTHER)), [LINES, OTHER])
    if content[:2] == b"\x1f\x8b":
        return gzip.compress(lines, mtime=0)
    return zstandard.ZstdCompressor(write_checksum=draw.random() < 0.5).compress(lines)


_TEXTS = "cptron.tokens.read_blocks, cptron.tokens.parse_json"
TARGETS = [
    Target(
        format="JSONL",
        name="jsonl",
        reader=_TEXTS,
        make=lambda root: _files(root, {"a.jsonl": LINES, "b.jsonl": OTHER}),
        read=read_texts,
        mutate=mutate_lines,
        check=check_lines,
        budget=3,
    ),
    Target(
        format="JSONL",
        name="jsonl-chats",
        reader=_TEXTS,
        make=lambda root: _files(root, {"a.jsonl": CHATS}),
        read=read_chats,
        mutate=mutate_lines,
    ),
    Target(
        format="JSONL",
        name="jsonl-evaluated",
        reader="cptron.evaluate.reference.documents",
        make=lambda root: _files(root, {"a.jsonl": LINES, "b.jsonl": OTHER}),
        read=read_reference,
        mutate=mutate_lines,
        check=check_reference,
    ),
    Target(
        format="JSONL in gzip",
        name="jsonl-gzip",
        reader="cptron.tokens.read_stored, cptron.tokens.read_lines",
        make=make_gzip,
        read=read_texts,
        mutate=mutate_compressed,
        check=check_lines,
        planted=planted_gzip,
    ),
    Target(
        format="JSONL in gzip",
        name="jsonl-gzip-evaluated",
        reader="cptron.evaluate.reference.documents",
        make=make_gzip,
        read=read_reference,
        mutate=mutate_compressed,
        check=check_reference,
        planted=planted_gzip,
        budget=0.5,
    ),
    Target(
        format="JSONL in zstd",
        name="jsonl-zstd",
        reader="cptron.tokens.read_stored, cptron.tokens.read_lines",
        make=make_zstd,
        read=read_texts,
        mutate=mutate_compressed,
        check=check_lines,
        planted=planted_zstd,
        memory_bytes=128 << 20,  # 512 bytes become at most 16 MiB at once
        address_bytes=6
        << 30,  # a window of 2 GiB is what `zstd --long=31` writes; what is not used costs nothing
    ),
    Target(
        format="JSONL in zstd",
        name="jsonl-zstd-evaluated",
        reader="cptron.evaluate.reference.documents",
        make=make_zstd,
        read=read_reference,
        mutate=mutate_compressed,
        check=check_reference,
        planted=planted_zstd,
        budget=0.5,
        address_bytes=6 << 30,
    ),
    Target(
        format="text",
        name="text",
        reader="cptron.tokens.read_text",
        make=lambda root: _files(root, {"a.txt": OTHER, "b.txt.gz": gzip.compress(OTHER, mtime=0)}),
        read=read_texts,
        mutate=mutate_bytes,
        budget=0.5,
    ),
    Target(
        format="Parquet",
        name="parquet",
        reader="cptron.tokens.read_tables.read_parquet",
        make=make_parquet,
        read=read_texts,
        mutate=mutate_bytes,
        check=check_table,
        planted=planted_parquet,
        memory_bytes=256
        << 20,  # rows are read 1,024 at a time, however long one text is that all of them refer to
    ),
    Target(
        format="Arrow",
        name="arrow",
        reader="cptron.tokens.read_tables.read_arrow",
        make=make_arrow,
        read=read_texts,
        mutate=mutate_bytes,
        check=check_table,
    ),
    Target(
        format="saved dataset",
        name="dataset-state",
        reader="cptron.tokens.inputs.expand_inputs",
        make=make_dataset,
        read=read_dataset,
        mutate=mutate_json,
        budget=0.5,
    ),
]
