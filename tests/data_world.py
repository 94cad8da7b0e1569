"""Token files made by hand, for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.order import Packing
from cptron.data.source import TokenSource
from cptron.data.stream import Mix, OnMaxEpochs, SampleStream
from cptron.tokens.index_layout import loss_mask_path
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.tokens.manifest import (
    FORMAT_VERSION,
    FileRecord,
    Manifest,
    TokenizerRecord,
    hash_file,
    write_manifest,
)

SEQ = 8
Rows = list[tuple[int, ...]]


def write_tokens(
    prefix: Path,
    lengths: list[int],
    first: int = 0,
    *,
    learned: np.ndarray | None = None,
    manifest: bool = True,
) -> np.ndarray:
    """Token files whose tokens are all different; returns the stream in file order."""
    stream = np.arange(first, first + sum(lengths), dtype=np.int32)
    with IndexedWriter(prefix, np.int32) as writer:
        start = 0
        for length in lengths:
            writer.add(stream[start : start + length])
            start += length
        writer.finish()
    files: dict[str, FileRecord] = {kind: hash_file(Path(f"{prefix}.{kind}")) for kind in ("bin", "idx")}
    if learned is not None:
        loss_mask_path(prefix).write_bytes(learned.astype(np.uint8).tobytes())
        files["loss_mask"] = hash_file(loss_mask_path(prefix))
    if manifest:
        write_manifest(prefix, manifest_of(files, len(lengths), len(stream)))
    return stream


def manifest_of(files: dict[str, FileRecord], documents: int, tokens: int) -> Manifest:
    """What `cptron preprocess` would have written."""
    return Manifest(
        format_version=FORMAT_VERSION,
        documents=documents,
        tokens=tokens,
        dtype="int32",
        files=files,
        tokenizer=TokenizerRecord(name="t", fingerprint="f", vocab_size=10**6, eos_id=0, bos_id=None),
        append_eod=False,
        prepend_bos=False,
        key="text",
        sources=(),
        records_read=documents,
        documents_empty_skipped=0,
        documents_rejected={},
        engine="test",
        partition="",
        options={},
        cptron_version="test",
    )


def open_stream(
    prefixes: dict[str, str],
    shares: dict[str, float],
    ledger: Ledger | None = None,
    *,
    seed: int = 7,
    packing: Packing = "joined",
    max_epochs: dict[str, float] | None = None,
    on_max_epochs: OnMaxEpochs = "warn",
) -> SampleStream:
    """A stream over some of the corpora."""
    sources = [TokenSource(name, prefixes[name], SEQ, seed, packing=packing) for name in shares]
    limits = tuple((max_epochs or {}).get(name, 0.0) for name in shares)
    return SampleStream(sources, Mix(tuple(shares.values()), limits, on_max_epochs), ledger or Ledger())


def take_step(stream: SampleStream, ledger: Ledger, cut: Cut) -> Rows:
    """Labels of one global batch of this rank, read by a loader of its own; `ledger` moves on."""
    loader = TrainLoader(stream, ledger, cut)
    rows = labels(loader.next_step())
    loader.close()
    return rows


def labels(batches: list) -> Rows:  # type: ignore[type-arg]
    """What each row of the micro-batches predicts."""
    return [
        tuple(row[mask == 1].tolist())
        for batch in batches
        for row, mask in zip(batch.labels_BS, batch.loss_mask_BS, strict=True)
    ]


def sample_labels(source: TokenSource, cursor: int) -> tuple[int, ...]:
    """What one sample predicts."""
    _, found, mask = source.sample(cursor)
    return tuple(found[mask == 1].tolist())
