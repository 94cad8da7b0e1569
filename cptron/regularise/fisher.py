"""Estimates the Fisher information of a checkpoint's weights and stores it.

Place in the flow: `cptron fisher`, before a run with `regularise.ewc`. Invariant: what is stored is the empirical
information of the cross entropy (labels from the data), divided by its mean and cut at `LARGEST`, so that the strength
of the penalty has no unit; the record says of which weights and data, and whether it is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.checkpoint.parts import OPTIMIZER, Part, Parts
from cptron.checkpoint.reader import ShardReader
from cptron.checkpoint.sharded import Holdings, complete_shards, read_parts
from cptron.checkpoint.weights import load_weights
from cptron.data.batch import MicroBatch
from cptron.data.source import TokenSource
from cptron.durable import begin_directory, publish_directory, working_directory
from cptron.errors import CheckpointError, DataError
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.regularise.fisher_file import SHARDS, FisherRecord, write_record
from cptron.regularise.squares import Squares
from cptron.runtime.dist import agree, from_main
from cptron.runtime.pipeline import blank
from cptron.runtime.session import Session
from cptron.versions import installed_versions

T = TypeVar("T")

LARGEST = 1000.0
"""Times the mean; a few weights with far more would be all that the penalty sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """On which sequences the information is estimated."""

    prefix: str
    """Of token files."""
    sequences: int
    seq_length: int
    batch_size: int = 1
    """More than 1 squares the gradients of sums over so many sequences: cheaper, and an approximation."""
    seed: int = 1234


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sums of squares by parameter, flat, the same on all data parallel ranks, and where they come from."""

    values: dict[torch.Tensor, torch.Tensor]
    origin: dict[str, Any] = field(default_factory=dict)
    """Fields of the record."""


def estimate_and_store(
    checkpoint: Path,
    final: Path,
    sample: Sample | None,
    session: Session,
    *,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> FisherRecord:
    """Estimate on `sample`, or take Adam's second moments of the checkpoint where that is None, and publish `final`;
    collective. Raises a `CptronError` on every rank."""
    manifest = agree(lambda: layout.read_manifest(checkpoint))
    if manifest.adapter is not None:
        raise CheckpointError(
            f"{checkpoint} holds an adapter, not whole weights; merge it and convert the result"
        )
    options = ModelOptions(precision=precision, random_weights=False)
    bare = build_chunks(manifest.arch, session.topology.layout, options)
    load_weights(checkpoint, bare)
    parts = Parts(bare)
    if sample is None:
        estimate = agree(lambda: _of_adam(checkpoint, bare, parts))
    else:
        estimate = _of_data(manifest, sample, bare, session)
    boxes = _boxes(estimate, parts, session)
    record = FisherRecord(
        checkpoint=str(checkpoint.resolve()),
        weights_fingerprint=manifest.weights_fingerprint,
        precision=precision,
        versions=installed_versions(),
        **estimate.origin,
        **_normalise(estimate, boxes, manifest.arch.vocab_size),
    )
    return _store(final, record, boxes, manifest.arch.vocab_size, session)


def _of_data(manifest: layout.Manifest, sample: Sample, bare: Sequence[Any], session: Session) -> Estimate:
    source = agree(lambda: _open(manifest, sample))
    squares = Squares(bare, session.device.torch_device)
    dp = session.topology.dp
    num_batches = sample.sequences // sample.batch_size
    for first in range(0, num_batches, dp):
        mine = first + session.dp_rank
        batches = agree(partial(_batches, source, sample, min(mine, num_batches - 1)))
        squares.add(batches if mine < num_batches else [blank(batch) for batch in batches])
    origin = {
        "estimator": "sequences" if sample.batch_size == 1 else "batches",
        "data": source.identity,
        "sequences": sample.sequences,
        "batch_size": sample.batch_size,
        "seq_length": sample.seq_length,
        "seed": sample.seed,
        "tokens": squares.tokens,
    }
    return Estimate({param: total / sample.sequences for param, total in squares.result().items()}, origin)


def _open(manifest: layout.Manifest, sample: Sample) -> TokenSource:
    source = TokenSource(
        "fisher", sample.prefix, sample.seq_length, sample.seed, vocab_size=manifest.arch.vocab_size
    )
    if sample.sequences > source.samples_per_epoch:
        raise DataError(
            f"{sample.prefix} has {source.samples_per_epoch} sequences of {sample.seq_length} tokens, "
            f"{sample.sequences} were asked for; ask for fewer, shorter ones, or give more data"
        )
    return source


def _batches(source: TokenSource, sample: Sample, number: int) -> list[MicroBatch]:
    """One sequence each."""
    batches = []
    for cursor in range(number * sample.batch_size, (number + 1) * sample.batch_size):
        batch = source.empty_batch(1)
        source.read(np.array([cursor]), batch)
        batches.append(batch)
    return batches


def _of_adam(checkpoint: Path, bare: Sequence[Any], parts: Parts) -> Estimate:
    """The second moments that the run which wrote the checkpoint had: of clipped gradients of batches, over its last
    steps."""
    reader = ShardReader(checkpoint / layout.SHARDS)
    prefix = f"{OPTIMIZER}exp_avg_sq."
    values: dict[torch.Tensor, torch.Tensor] = {}
    for chunk in bare:
        for param in chunk.parameters():
            value = torch.empty(param.numel(), device=param.device)
            boxes = list(parts.boxes_of(param, 0, param.numel(), value, prefix))
            for box in boxes:
                if box.key not in reader.keys:
                    raise CheckpointError(
                        f"{checkpoint} has no {box.key}: it is no checkpoint of a run that trained all weights with "
                        "AdamW; estimate on data instead"
                    )
            read_parts(reader, boxes)
            values[param] = value
    return Estimate(values, {"estimator": "adam"})


def _boxes(estimate: Estimate, parts: Parts, session: Session) -> list[Part]:
    """What this rank writes: views of its values that no other rank has, or has before it."""
    topology, rank = session.topology, session.ranks.rank
    if topology.dp_rank(rank) or topology.cp_rank(rank):
        return []
    return [
        box
        for param, value in estimate.values.items()
        if parts.is_first_copy(param)
        for box in parts.boxes_of(param, 0, param.numel(), value)
    ]


def _normalise(estimate: Estimate, boxes: Sequence[Part], vocab_size: int) -> dict[str, Any]:
    """Divide by the mean over all weights and cut; returns what the record says of it. Collective."""
    values = list(estimate.values.values())
    sums = torch.zeros(3, dtype=torch.float64, device=values[0].device)
    for box in boxes:
        sums[0] += box.tensor.sum(dtype=torch.float64)
        sums[1] += _count(box, vocab_size)
    dist.all_reduce(sums)
    mean = float(sums[0] / sums[1])
    if not (mean > 0 and math.isfinite(mean)):
        raise DataError(
            f"the mean of the Fisher information is {mean}: gradients are zero or not finite; look at data and weights"
        )
    for value in values:
        value.div_(mean)
    for box in boxes:
        sums[2] += (box.tensor > LARGEST).sum()
    clipped = sums[2].clone()
    dist.all_reduce(clipped)
    for value in values:
        value.clamp_(max=LARGEST)
    return {"mean": mean, "elements": int(sums[1]), "clipped": int(clipped)}


def _count(box: Part, vocab_size: int) -> int:
    """Weights of a box; the padding of a vocabulary is none."""
    rows, *rest = box.sizes[box.above :]
    if box.is_of_vocabulary:
        rows = min(rows, max(vocab_size - box.offsets[box.above], 0))
    return rows * math.prod(rest)


def _store(
    final: Path, record: FisherRecord, boxes: Sequence[Part], vocab_size: int, session: Session
) -> FisherRecord:
    """Every rank writes its boxes; the main rank completes and publishes the directory."""
    is_main, working = session.ranks.is_main, working_directory(final)

    def on_disk(action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise CheckpointError(
                f"cannot write {final} ({error}); free space or choose another place"
            ) from None

    agree(lambda: on_disk(lambda: (begin_directory(final) / SHARDS).mkdir()) if is_main else None)
    holdings = Holdings.of_parts(boxes, vocab_size)
    written = agree(lambda: on_disk(lambda: holdings.write(working / SHARDS, session.ranks.rank)))
    reports: list[Any] = [None] * session.ranks.world_size
    dist.all_gather_object(reports, holdings.report(written))

    def complete() -> FisherRecord:
        files, checksums = complete_shards(working / SHARDS, reports)
        known = {f"{SHARDS}/{name}": file for name, file in files.items()}
        done = write_record(working, replace(record, checksums=checksums), known)
        publish_directory(final)
        return done

    return from_main(lambda: on_disk(complete))
