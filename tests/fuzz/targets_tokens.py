"""Targets: token files (`.idx`, `.bin`, loss mask, manifest), the index cache, the journal of preprocess.

Seeds come from cptron's writer, from megatron-core's, and from numpy alone; results are held against a reader of the
format that shares no code with the product.
"""

from __future__ import annotations

import itertools
import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_bytes import EDGES, mutate_bytes, put_number
from fuzz_json import mutate_json
from fuzz_target import Seed, Target
from tokens_world import write_known

from cptron.data.cache import IndexCache
from cptron.data.content import open_content
from cptron.data.source import TokenSource
from cptron.inspect_tokens import describe_tokens
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.indexed_writer import WriterState
from cptron.tokens.journal import Checkpoint, Entry, Journal
from cptron.tokens.manifest import load_manifest
from cptron.tokens.records import Position
from cptron.tokens.token_files import TokenFiles

HEADER = struct.Struct("<9sQBQQ")
DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], list(range(20, 60))]
SIZES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def write_plain(
    prefix: Path, sequences: Sequence[Sequence[int]], bounds: Sequence[int], dtype: str, code: int
) -> None:
    """Token files by numpy alone, with any document index."""
    lengths = np.array([len(ids) for ids in sequences], "<i4")
    ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(dtype).itemsize
    pointers = np.concatenate(([0], ends[:-1])).astype("<i8")
    header = HEADER.pack(b"MMIDIDX\0\0", 1, code, len(lengths), len(bounds))
    parts = [header, lengths.tobytes(), pointers.tobytes(), np.array(bounds, "<i8").tobytes()]
    Path(f"{prefix}.idx").write_bytes(b"".join(parts))
    Path(f"{prefix}.bin").write_bytes(np.concatenate([np.array(ids, dtype) for ids in sequences]).tobytes())


def make_worlds(root: Path) -> dict[str, Path]:
    """Directories with the token files `t`."""
    worlds = {name: root / name for name in ("known", "masked", "plain", "sentences", "wide")}
    for directory in worlds.values():
        directory.mkdir()
    write_known(worlds["known"] / "t", DOCUMENTS)
    mask = [1, 0] * (sum(map(len, DOCUMENTS)) // 2)
    write_known(worlds["masked"] / "t", DOCUMENTS, mask)
    write_plain(worlds["plain"] / "t", DOCUMENTS, range(len(DOCUMENTS) + 1), "<u2", 8)
    write_plain(worlds["sentences"] / "t", DOCUMENTS, [0, 0, 2, 2, 3, 5], "<i4", 4)
    write_plain(worlds["wide"] / "t", DOCUMENTS[:2], [0, 1, 2], "<i8", 5)
    return worlds


def _seeds(*suffixes: str) -> Any:
    def make(root: Path) -> list[Seed]:
        worlds = make_worlds(root).values()
        return [
            Seed(path, f"t{suffix}")
            for path in worlds
            for suffix in suffixes
            if (path / f"t{suffix}").exists()
        ]

    return make


def read_tokens(directory: Path) -> list[list[int]]:
    """All documents through the reader of training."""
    tokens = open_content(str(directory / "t")).tokens
    return [tokens.read(number).tolist() for number in range(tokens.num_documents)]


def scan_tokens(directory: Path) -> list[list[int]]:
    """The same, with every number of the index checked."""
    tokens = IndexedTokens(directory / "t")
    return [tokens.read(number).tolist() for number in range(tokens.num_documents)]


def sample_tokens(directory: Path) -> Any:
    """The samples of two epochs, joined and packed, by the kernels."""
    found = []
    for packing in ("joined", "best_fit"):
        source = TokenSource("t", str(directory / "t"), 8, 1, packing=packing, vocab_size=100)  # type: ignore[arg-type]
        count = min(2 * source.samples_per_epoch, 60)
        batch = source.empty_batch(count)
        source.read(np.arange(count), batch)
        counted = source.count(np.arange(count))
        found += [batch.tokens_BS.tolist(), batch.labels_BS.tolist(), batch.loss_mask_BS.tolist(), counted]
        found.append(
            [[tuple(map(int, vars_of(span))) for span in source.spans(cursor)] for cursor in range(count)]
        )
    return found


def vars_of(span: Any) -> tuple[int, int, int]:
    """The numbers of a span."""
    return span.document, span.offset, span.length


def walk_tokens(directory: Path) -> Any:
    """What `merge`, `split` and `inspect` read."""
    files = TokenFiles(directory / "t")
    documents = [int(length) for piece in files.pieces() for length in piece.lengths]
    spans = [files.document_span(number) for number in range(files.num_documents)]
    texts = [files.tokens(start, start + length).tolist() for start, length in spans]
    masks = [
        None if (found := files.mask(start, start + n)) is None else found.tolist() for start, n in spans
    ]
    facts = describe_tokens(str(directory / "t"), document=0) if files.num_documents else {}
    return documents, texts, masks, json.dumps(facts, default=str)


def independent(directory: Path) -> list[list[int]] | None:
    """Documents with tokens, read by struct and numpy; None where the files are not sound."""
    index, ids = (directory / "t.idx").read_bytes(), (directory / "t.bin").read_bytes()
    if len(index) < HEADER.size:
        return None
    magic, version, code, num_sequences, num_bounds = HEADER.unpack_from(index)
    sizes = HEADER.size + 12 * num_sequences + 8 * num_bounds
    if magic != b"MMIDIDX\0\0" or version != 1 or code not in SIZES or sizes != len(index):
        return None
    lengths = struct.unpack_from(f"<{num_sequences}i", index, HEADER.size)
    pointers = struct.unpack_from(f"<{num_sequences}q", index, HEADER.size + 4 * num_sequences)
    bounds = struct.unpack_from(f"<{num_bounds}q", index, HEADER.size + 12 * num_sequences)
    width, at, sequences = np.dtype(SIZES[code]).itemsize, 0, []
    for length, pointer in zip(lengths, pointers, strict=True):
        if length < 0 or pointer != at or at + width * length > len(ids):
            return None
        sequences.append(np.frombuffer(ids, SIZES[code], length, at).tolist())
        at += width * length
    if at != len(ids) or not bounds or bounds[0] != 0 or bounds[-1] != num_sequences:
        return None
    if any(first > second for first, second in itertools.pairwise(bounds)):
        return None
    documents = [
        list(itertools.chain(*sequences[first:second])) for first, second in itertools.pairwise(bounds)
    ]
    return documents


def check_documents(directory: Path, value: list[list[int]]) -> str | None:
    """The documents are those that are in the files; a reader that trusts a manifest may return others, as long as
    they lie in `.bin`."""
    expected = independent(directory)
    if expected is None:
        return "damaged files were read: no independent reader takes them"
    kept = [document for document in expected if document]
    return None if value == kept else f"other documents than an independent reader finds: {value} for {kept}"


def check_trusted(directory: Path, value: list[list[int]]) -> str | None:
    """With a manifest the scan is left out, so an index that was changed in place gives other stretches of `.bin`."""
    if not (directory / "t.manifest.json").exists():
        return check_documents(directory, value)
    ids = (directory / "t.bin").read_bytes()
    code = (directory / "t.idx").read_bytes()[17]
    for document in value:
        if np.array(document, SIZES[code]).tobytes() not in ids:
            return f"tokens that are not in .bin: {document}"
    return None


def check_walk(directory: Path, value: Any) -> str | None:
    """Documents with empty ones, by the independent reader."""
    expected = independent(directory)
    if expected is None:
        return "damaged files were read: no independent reader takes them"
    lengths, texts, _, _ = value
    if texts != expected or lengths != list(map(len, expected)):
        return f"other documents than an independent reader finds: {value} for {expected}"
    return None


def mutate_index(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to a field of the header, to the numbers of one of the arrays, or to bytes."""
    kind = draw.random()
    if kind < 0.3 or len(content) < HEADER.size:
        return mutate_bytes(draw, content, others)
    if kind < 0.45:
        at, width = draw.choice(((0, 8), (9, 8), (17, 1), (18, 8), (26, 8)))
        return put_number(draw, content, at, width)
    _, _, _, num_sequences, num_bounds = HEADER.unpack_from(content)
    lengths, pointers = HEADER.size, HEADER.size + 4 * num_sequences
    bounds = pointers + 8 * num_sequences
    if kind < 0.6:
        start, width, count = draw.choice(
            ((lengths, 4, num_sequences), (pointers, 8, num_sequences), (bounds, 8, num_bounds))
        )
        for _ in range(draw.choice((1, 2, 3))):
            content = put_number(draw, content, start + width * draw.randrange(max(1, count)), width)
        return content
    if kind < 0.8:  # a document index of its own, with counts that fit
        values = [draw.choice((*EDGES, *range(num_sequences + 2))) for _ in range(draw.randrange(8))]
        values = [0, *values, num_sequences] if draw.random() < 0.7 else values
        wrapped = [(value + 2**63) % 2**64 - 2**63 for value in values]
        header = content[:26] + struct.pack("<Q", len(wrapped))
        return header + content[HEADER.size : bounds] + struct.pack(f"<{len(wrapped)}q", *wrapped)
    # other lengths, with the pointers that they require
    values = [draw.choice((0, 1, 2, 3, 2**31 - 1, -1, draw.randrange(100))) for _ in range(draw.randrange(6))]
    ends = np.cumsum([0, *values], dtype=np.int64) * draw.choice((1, 2, 2, 4, 8))
    header = content[:18] + struct.pack("<QQ", len(values), len(values) + 1)
    arrays = struct.pack(f"<{len(values)}i", *values) + ends[:-1].astype("<i8").tobytes()
    return header + arrays + np.arange(len(values) + 1, dtype="<i8").tobytes()


def planted_index(directory: Path) -> Mapping[str, bytes]:
    """Counts whose sizes overflow 64 bits to the size of the file, and indices whose differences do."""
    lengths, pointers = struct.pack("<2i", 1, 1), struct.pack("<2q", 0, 2)
    head = lambda sequences, bounds: HEADER.pack(b"MMIDIDX\0\0", 1, 8, sequences, bounds)  # noqa: E731
    wraps = (0, 2**63 - 1, -(2**63), -1, 2)
    return {
        "counts that overflow to nothing": head(2**62, 2**61 - 2**62 * 12 // 8 % 2**61),
        "huge counts": head(2**63, 2**63),
        "a document index that wraps": head(2, 5) + lengths + pointers + struct.pack("<5q", *wraps),
        "an index of no documents": head(0, 1) + struct.pack("<q", 0),
        "an index of nothing": head(0, 0),
    }


def make_cache(root: Path) -> list[Seed]:
    """Cache files by the product's writer."""
    seeds = []
    for name, array in (("a", np.arange(50)), ("b", np.zeros(0, np.int64)), ("c", np.array([2**62, -5]))):
        directory = root / name
        IndexCache(directory).get("key", lambda array=array: array.astype("<i8"))  # type: ignore[misc]
        (directory / "whole").write_bytes(array.astype("<i8").tobytes())
        seeds.append(Seed(directory, "key.index"))
    return seeds


def read_cache(directory: Path) -> list[int]:
    """The array of the key, from the file or made again."""
    whole = np.frombuffer((directory / "whole").read_bytes(), "<i8")
    return IndexCache(directory).get("key", lambda: whole).tolist()


def check_cache(directory: Path, value: list[int]) -> str | None:
    """Damage is noticed and the array made again."""
    whole = np.frombuffer((directory / "whole").read_bytes(), "<i8").tolist()
    return None if value == whole else "a damaged cache file was taken for whole"


def mutate_manifest(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """JSON, not too often the one of other files."""
    return mutate_json(draw, content, others if draw.random() < 0.3 else ())


def check_manifest(directory: Path, value: Any) -> str | None:
    """What was read is what the JSON says."""
    content = json.loads((directory / "t.manifest.json").read_bytes())
    one, other = (json.dumps(found, sort_keys=True) for found in (value, content))
    return None if one == other else "other values than the JSON has"


def make_journal(root: Path) -> list[Seed]:
    """Journals of a run that was cut off, in the middle and while publishing."""
    point = Checkpoint(
        Position(0, 10, 400), 10, [1], {"bad_json": 2}, [WriterState(9, 100, {"bin": 200, "lengths": 36})], 0
    )
    seeds = []
    for name, publishing in (("middle", []), ("end", [{"format_version": 2}])):
        (root / name).mkdir()
        Journal(str(root / name / "t")).save(
            Entry({"inputs": ["a.jsonl"], "on_error": "stop"}, point, publishing)
        )
        seeds.append(Seed(root / name, "t.preprocess.journal.json"))
    return seeds


def read_journal(directory: Path) -> Any:
    """The entry, after a comparison with the command that made it."""
    journal = Journal(str(directory / "t"))
    entry = journal.load()
    if entry is None:
        return None
    journal.require_identity(entry, {"inputs": ["a.jsonl"], "on_error": "stop"})
    return repr(entry)


_INDEXED = "cptron.tokens.index_layout.Index, cptron.tokens.indexed.IndexedTokens"
TARGETS = [
    Target(
        format=".idx",
        name="idx-scanned",
        reader=_INDEXED,
        make=_seeds(".idx"),
        read=scan_tokens,
        mutate=mutate_index,
        check=check_documents,
        planted=planted_index,
        budget=3,
    ),
    Target(
        format=".idx",
        name="idx-with-manifest",
        reader="cptron.data.content.open_content",
        make=_seeds(".idx"),
        read=read_tokens,
        mutate=mutate_index,
        check=check_trusted,
        planted=planted_index,
        budget=2,
    ),
    Target(
        format=".idx",
        name="idx-walked",
        reader="cptron.tokens.token_files.TokenFiles, cptron.inspect_tokens",
        make=_seeds(".idx"),
        read=walk_tokens,
        mutate=mutate_index,
        check=check_walk,
        planted=planted_index,
        budget=2,
    ),
    Target(
        format=".idx",
        name="idx-sampled",
        reader="cptron.data.source.TokenSource, csrc",
        make=_seeds(".idx"),
        read=sample_tokens,
        mutate=mutate_index,
        planted=planted_index,
        budget=2,
    ),
    Target(
        format=".bin",
        name="bin-sampled",
        reader="cptron.data.source.TokenSource, csrc",
        make=_seeds(".bin", ".loss_mask.bin"),
        read=sample_tokens,
        mutate=mutate_bytes,
    ),
    Target(
        format=".bin",
        name="bin",
        reader=f"{_INDEXED}, cptron.tokens.token_files.TokenFiles",
        make=_seeds(".bin", ".loss_mask.bin"),
        read=lambda directory: (read_tokens(directory), walk_tokens(directory)),
        mutate=mutate_bytes,
        check=lambda directory, value: check_trusted(directory, value[0]) or check_walk(directory, value[1]),
    ),
    Target(
        format="token manifest",
        name="token-manifest",
        reader="cptron.tokens.manifest.load_manifest",
        make=_seeds(".manifest.json"),
        read=lambda directory: asdict(load_manifest(directory / "t")),
        mutate=mutate_manifest,
        check=check_manifest,
        budget=2,
    ),
    Target(
        format="token manifest",
        name="token-manifest-opened",
        reader="cptron.data.content.open_content, cptron.inspect_tokens.describe_tokens",
        make=_seeds(".manifest.json"),
        read=lambda directory: (read_tokens(directory), walk_tokens(directory)),
        mutate=mutate_manifest,
    ),
    Target(
        format="index cache",
        name="index-cache",
        reader="cptron.data.cache.IndexCache",
        make=make_cache,
        read=read_cache,
        mutate=mutate_bytes,
        check=check_cache,
    ),
    Target(
        format="preprocess journal",
        name="journal",
        reader="cptron.tokens.journal.Journal",
        make=make_journal,
        read=read_journal,
        mutate=mutate_json,
    ),
]
