"""Targets: what `curate` reads texts from: JSONL, ZIP, tables with their metadata, shards of its own, evaluation sets.

Seeds come from Python's json and zipfile and from pyarrow. Reading goes as far as a curation does: what an input gives
is written into a shard and read again.
"""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from corpus_world import text_of
from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_lines
from fuzz_target import Seed, Target
from targets_corpus import LINES, OTHER, TEXTS

from cptron.corpus.dedup.contamination import EvaluationIndex
from cptron.corpus.dedup.evaluation_items import read_items
from cptron.corpus.read import read_documents
from cptron.corpus.schema import CorpusConfig, InputConfig
from cptron.corpus.shard_file import ShardWriter, read_shard
from cptron.corpus.shards import look_up
from cptron.tokens.records import Reject

MAX_DOCUMENT_BYTES = 1 << 20
RICH = "".join(
    json.dumps(
        {"body": text * 30, "n": number, "meta": {"tags": ["a", None], "x": 1.5}, "date": "2026-01-01"}
    )
    + "\n"
    for number, text in enumerate(("one text ", "größer ", "x"))
).encode()
"""The key of the text must be found."""


def _files(root: Path, files: Mapping[str, bytes]) -> list[Seed]:
    seeds = []
    for number, (name, content) in enumerate(files.items()):
        (root / str(number) / "raw").mkdir(parents=True)
        (root / str(number) / "raw" / name).write_bytes(content)
        seeds.append(Seed(root / str(number), f"raw/{name}"))
    return seeds


def read_inputs(directory: Path) -> Any:
    """Documents and rejects of the input below `raw`, cut into shards, written and read again."""
    source = InputConfig(name="x", paths=(str(directory / "raw"),))
    stored = sum(path.stat().st_size for path in (directory / "raw").iterdir())
    config = CorpusConfig(output="", inputs=(source,), shard_bytes=max(1024, stored // 64))
    corpus = look_up(config)
    documents, rejects, counted = [], [], 0
    shard_file = directory / "made.jsonl.zst"
    for shard in corpus.shards:
        records: list[int] = []
        with ShardWriter(shard_file, 1) as writer:
            for found in read_documents(shard, corpus.sources[shard.source], MAX_DOCUMENT_BYTES, records):
                if isinstance(found, Reject):
                    assert len(found.detail.splitlines()) <= 1, found.detail
                    rejects.append((shard.number, found.record, found.reason))
                else:
                    documents.append((found.id, found.text))
                    writer.write(found)
            writer.publish()
        counted += sum(records)
        again = [(document.id, document.text) for document in read_shard(shard_file)]
        assert again == documents[len(documents) - len(again) :], "a shard does not hold what was written"
    shard_file.unlink(missing_ok=True)
    return corpus.sources[0].text_key, documents, rejects, counted


def check_lines(directory: Path, value: Any) -> str | None:
    """Every line is a document with the text that json finds, or a reject; ids are places of lines."""
    (path,) = (directory / "raw").iterdir()
    key, documents, rejects, counted = value
    if counted != len(documents) + len(rejects) or len({name for name, _ in documents}) != len(documents):
        return f"{counted} records, {len(documents)} documents, {len(rejects)} rejects"
    if path.suffix != ".jsonl":
        return None
    content = path.read_bytes()
    for name, text in documents:
        line = content[int(name.rsplit("#", 1)[1]) :].split(b"\n")[0]
        if json.loads(line.decode("utf-8-sig"))[key].encode() != text.encode():
            return f"another text than json reads: {name}"
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = len(lines) - (not lines[-1])
    return None if counted == expected else f"{counted} records of {expected} lines"


def _zip(files: Mapping[str, bytes], compression: int) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def make_zip(root: Path) -> list[Seed]:
    """Stored, deflated, and packed by bzip2 and LZMA; members in folders."""
    members = {"in/x.jsonl": LINES, "in/y.txt": b"a text", "z.jsonl": OTHER}
    kinds = {
        "stored": zipfile.ZIP_STORED,
        "deflated": zipfile.ZIP_DEFLATED,
        "bz": zipfile.ZIP_BZIP2,
        "lzma": zipfile.ZIP_LZMA,
    }
    return _files(root, {f"{name}.zip": _zip(members, kind) for name, kind in kinds.items()})


def planted_zip(_: Path) -> Mapping[str, bytes]:
    """Zeros that unpack to 192 MiB, a name that leaves the folder, one member twice."""
    twice = BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.jsonl"), LINES)
        archive.writestr(zipfile.ZipInfo("a.jsonl "), OTHER)
    return {
        "bomb": _zip({"a.jsonl": bytes(192 << 20)}, zipfile.ZIP_DEFLATED),
        "bomb of text": _zip({"a.txt": bytes(192 << 20)}, zipfile.ZIP_DEFLATED),
        "a name outside": _zip({"../../a.jsonl": LINES}, zipfile.ZIP_STORED),
        "one name twice": twice.getvalue().replace(b"a.jsonl ", b"a.jsonl\0"),
    }


def make_tables(root: Path) -> list[Seed]:
    """Parquet and Arrow with metadata of many types."""
    columns = {
        "text": pyarrow.array(TEXTS),
        "n": pyarrow.array(range(8)),
        "when": pyarrow.array([0, 1, None, 3, 4, 5, 6, 7], pyarrow.timestamp("us", "UTC")),
        "raw": pyarrow.array([b"\xff", b"", None, b"a", b"b", b"c", b"d", b"e"]),
        "list": pyarrow.array([[1], [], None, [2, 3], [], [], [], []]),
        "deep": pyarrow.array([{"a": 1, "b": "x"}] * 8),
        "some": pyarrow.array(["a", "b"] * 4).dictionary_encode(),
    }
    table = pyarrow.table(columns)
    files: dict[str, bytes] = {}
    stream = BytesIO()
    pyarrow.parquet.write_table(table, stream, row_group_size=3)
    files["a.parquet"] = stream.getvalue()
    for name, opener in (("stream.arrow", pyarrow.ipc.new_stream), ("file.arrow", pyarrow.ipc.new_file)):
        stream = BytesIO()
        with opener(stream, table.schema) as writer:
            writer.write_table(table)
        files[name] = stream.getvalue()
    return _files(root, files)


def make_shard_files(root: Path) -> list[Seed]:
    """By the product's writer, with odd metadata."""
    seeds = _files(root, {"a.jsonl": RICH, "b.jsonl": OTHER})
    found = []
    for seed in seeds:
        config = CorpusConfig(output="", inputs=(InputConfig(name="x", paths=(str(seed.path),)),))
        corpus = look_up(config)
        with ShardWriter(seed.directory / "00000.jsonl.zst", 3) as writer:
            for document in read_documents(corpus.shards[0], corpus.sources[0], MAX_DOCUMENT_BYTES, []):
                assert not isinstance(document, Reject)
                writer.write(document)
            writer.publish()
        found.append(Seed(seed.directory, "00000.jsonl.zst"))
    return found


def read_stored(directory: Path) -> Any:
    """All that the documents hold."""
    documents = list(read_shard(directory / "00000.jsonl.zst"))
    return [(one.text.encode(), one.id, one.source, sorted(one.meta)) for one in documents]


def mutate_shard(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to the packed bytes, or to the lines before they are packed."""
    import zstandard

    if draw.random() < 0.4:
        return mutate_bytes(draw, content, others)
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return zstandard.ZstdCompressor().compress(mutate_lines(draw, plain, [plain]))


EVALUATION = "".join(
    json.dumps({"question": text_of(number), "choices": [text_of(number + 50, 9), "no"], "n": number}) + "\n"
    for number in range(4)
).encode()


def read_evaluation(directory: Path) -> Any:
    """Items and what is found of them in a text."""
    items = list(read_items([str(directory / "raw")], ["question", "choices", "text"]))
    index = EvaluationIndex(items, 8, 4)
    return (
        items,
        index.num_runs,
        [[repr(span) for span in spans] for spans in index.find([text_of(1), "é" * 50])],
    )


_INPUTS = "cptron.corpus.shards, cptron.corpus.detect, cptron.corpus.read, cptron.corpus.shard_file"
TARGETS = [
    Target(
        format="curated JSONL",
        name="curate-jsonl",
        reader=_INPUTS,
        make=lambda root: _files(root, {"a.jsonl": LINES, "b.jsonl": OTHER, "c.jsonl": RICH}),
        read=read_inputs,
        mutate=mutate_lines,
        check=check_lines,
        budget=2,
    ),
    Target(
        format="curated ZIP",
        name="curate-zip",
        reader=f"{_INPUTS}, cptron.tokens.inputs",
        make=make_zip,
        read=read_inputs,
        mutate=mutate_bytes,
        check=check_lines,
        planted=planted_zip,
        budget=2,
        memory_bytes=128 << 20,
    ),
    Target(
        format="curated tables",
        name="curate-tables",
        reader=f"{_INPUTS}, cptron.tokens.read_tables",
        make=make_tables,
        read=read_inputs,
        mutate=mutate_bytes,
        check=check_lines,
        memory_bytes=256 << 20,
        budget=2,
    ),
    Target(
        format="shards of documents",
        name="shard-file",
        reader="cptron.corpus.shard_file.read_shard",
        make=make_shard_files,
        read=read_stored,
        mutate=mutate_shard,
        memory_bytes=128 << 20,
        address_bytes=6 << 30,
    ),
    Target(
        format="evaluation sets",
        name="evaluation-items",
        reader="cptron.corpus.dedup.evaluation_items, cptron.corpus.dedup.contamination, csrc",
        make=lambda root: [*_files(root, {"e.jsonl": EVALUATION}), *make_tables(root / "tables")],
        read=read_evaluation,
        mutate=lambda draw, content, others: (mutate_lines if content[:1] == b"{" else mutate_bytes)(
            draw, content, others
        ),
        memory_bytes=256 << 20,
    ),
]
