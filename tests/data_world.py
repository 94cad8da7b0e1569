"""Token files made by hand, for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokens_world import write_by_megatron, write_known

from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.order import Packing
from cptron.data.source import TokenSource
from cptron.data.stream import Mix, OnMaxEpochs, SampleStream
from cptron.tokens.manifest import manifest_path

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
    """Token files whose tokens are all different; returns the stream in file order.

    Documents without tokens are in files of megatron-core's writer alone, which have neither mask nor manifest.
    """
    stream = np.arange(first, first + sum(lengths), dtype=np.int32)
    mask = None if learned is None else learned.astype(np.uint8).tolist()
    documents = np.split(stream, np.cumsum(lengths)[:-1])
    if 0 in lengths:
        assert learned is None
        write_by_megatron(prefix, [[document.tolist()] for document in documents], "int32")
        return stream
    write_known(prefix, documents, mask, dtype="int32")
    if not manifest:
        manifest_path(prefix).unlink()
    return stream


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


def numbered(lengths: list[int], inputs: list[int], places: int, first: int = 0) -> list[int]:
    """Document of each of `places` places, of which the first hold `inputs`: token files made by `write_tokens`,
    walked token by token."""
    starts = {first + sum(lengths[:at]) for at, length in enumerate(lengths) if length}
    ids: list[int] = []
    for token in inputs:
        ids.append(ids[-1] + (token in starts) if ids else 0)
    return ids + [ids[-1] + 1 if ids else 0] * (places - len(ids))


def within_documents(lengths: list[int], found: list[int], mask: list[float], first: int = 0) -> list[float]:
    """`mask` of the labels `found` without the first tokens of documents."""
    starts = {first + sum(lengths[:at]) for at, length in enumerate(lengths) if length}
    return [0.0 if token in starts else learned for token, learned in zip(found, mask, strict=True)]


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
