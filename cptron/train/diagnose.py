"""Where a loss or gradient that is not finite comes from: the first bad tensor, its rank, and the data it was fed.

Place in the flow: `guards` asks after a backward pass, before any weight has changed. Invariant: collective; every rank
gets the same text, no weight and no gradient changes, and the text claims no more than can be known.

Weights come first: one bad element there explains everything after it. Otherwise the same micro-batches go through the
same schedule once more, forward only, and every module's output is looked at; without dropout the pass repeats exactly.
A sum over tensor ranks carries a bad value to all of them, and then all of them are named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cptron.data.batch import MicroBatch
from cptron.optim.data_parallel import finish_param_gather
from cptron.optim.names import named_parameters, whole_name
from cptron.optim.nonfinite import describe_nonfinite
from cptron.runtime.groups import stage_rank
from cptron.runtime.offloading import without_offloading
from cptron.runtime.pipeline import run_schedule, unwrapped
from cptron.runtime.topology import Topology

SHOWN = 4
"""Samples named in the message."""


class Diagnosis(NamedTuple):
    """What was found."""

    text: str
    in_weights: bool
    """Weights of the run itself are bad: no other batch can help."""


class _Finding(NamedTuple):
    """A bad tensor; findings are ordered by when it was computed."""

    micro_batch: int
    part: int
    """Position of its chunk in the model."""
    number: int
    """Position in that chunk: of a parameter, or of a module's end in the forward pass."""
    rank: int
    name: str
    elements: int
    samples: tuple[tuple[int, int], ...] = ()
    """(source, sample) of the rows that it may belong to."""


def diagnose(
    chunks: Sequence[Any],
    batches: Sequence[MicroBatch],
    source_names: Sequence[str],
    device: torch.device,
    topology: Topology,
) -> Diagnosis:
    """Find the first tensor that is not finite; collective, right after a backward pass over `batches`."""
    finish_param_gather(chunks)
    weights = _everywhere(list(_bad_weights(chunks, topology)))
    if weights:
        first = weights[0]
        others = len({finding.name for finding in weights}) - 1
        more = f"; {others} more parameter(s)" if others else ""
        elements = f"{first.elements} element(s) NaN or Inf"
        return Diagnosis(
            f"first bad tensor: weight {first.name} ({elements}, {_places(weights, topology)}){more}", True
        )
    with _watched(chunks, batches, topology) as local, torch.no_grad(), without_offloading(chunks):
        sums = run_schedule(chunks, batches, len(source_names), device, forward_only=True)
    outputs = _everywhere(local)
    if outputs:
        first = outputs[0]
        where = f"micro-batch {first.micro_batch}, {_samples(first.samples, source_names)}"
        return Diagnosis(
            f"first bad tensor: output of {first.name} ({_places(outputs, topology)}), {where}", False
        )
    again = f"the same forward pass, repeated, is finite (loss {sums.loss_nats_per_token:.6g})"
    assert math.isfinite(sums.loss_nats_per_token), "every output is finite, and so their sum"
    return Diagnosis(f"{again}; {describe_nonfinite(chunks)}", False)


def _bad_weights(chunks: Sequence[Any], topology: Topology) -> Iterator[_Finding]:
    for number, chunk in enumerate(chunks):
        for index, (name, param) in enumerate(named_parameters([chunk])):
            elements = int((~torch.isfinite(param)).sum())
            if elements:
                yield _Finding(0, _part(number, topology), index, dist.get_rank(), name, elements)


@contextmanager
def _watched(
    chunks: Sequence[Any], batches: Sequence[MicroBatch], topology: Topology
) -> Iterator[list[_Finding]]:
    """Within this context every module's output is looked at; the list gets the first bad one of each chunk."""
    found: list[_Finding] = []
    watches = [
        _Watch(unwrapped(chunk), batches, _part(number, topology), found)
        for number, chunk in enumerate(chunks)
    ]
    try:
        yield found
    finally:
        for watch in watches:
            watch.close()


class _Watch:
    """Looks at the outputs of one chunk until one is bad."""

    def __init__(self, chunk: Any, batches: Sequence[MicroBatch], part: int, found: list[_Finding]) -> None:
        self._batches, self._part, self._found = batches, part, found
        self._micro_batch, self._calls, self._done = -1, 0, False
        self._handles = [chunk.register_forward_pre_hook(self._begin)]
        for name, module in chunk.named_modules():
            whole = whole_name(chunk, name) if name else "the model"
            self._handles.append(
                module.register_forward_hook(lambda _, __, output, whole=whole: self._look(whole, output))
            )

    def close(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._micro_batch, self._calls = self._micro_batch + 1, 0

    def _look(self, name: str, output: Any) -> None:
        self._calls += 1
        if self._done:
            return
        for tensor in _tensors(output):
            bad = ~torch.isfinite(tensor)
            elements = int(bad.sum())
            if elements:
                self._done = True
                samples = _samples_of(self._batches[self._micro_batch], bad)
                place = (self._micro_batch, self._part, self._calls, dist.get_rank())
                self._found.append(_Finding(*place, name, elements, samples))
                return


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _samples_of(batch: MicroBatch, bad: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """(source, sample) of the rows with bad values; of all rows where an output does not tell them apart."""
    rows = len(batch.source_B)
    found = list(range(rows))
    if bad.dim() == 3 and bad.shape[1] == rows:  # [S, B, ...], as megatron-core lays out activations
        found = [row for row in found if bool(bad[:, row].any())]
    assert batch.sample_B is not None, "made by the loader"
    return tuple((int(batch.source_B[row]), int(batch.sample_B[row])) for row in found)


def _part(number: int, topology: Topology) -> int:
    return number * topology.layout.pp + stage_rank()


def _everywhere(local: list[_Finding]) -> list[_Finding]:
    """The findings of all ranks, first things first."""
    by_rank: list[list[_Finding]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, local)
    return sorted(finding for findings in by_rank for finding in findings)


def _places(findings: Sequence[_Finding], topology: Topology) -> str:
    """Where the first finding is: the ranks of one copy of the model that have it at the same moment."""
    first = findings[0]
    ranks = [
        finding.rank
        for finding in findings
        if finding[:3] == first[:3] and topology.dp_rank(finding.rank) == topology.dp_rank(first.rank)
    ]
    return "on " + "; ".join(f"rank {rank}: {topology.place(rank)}" for rank in ranks)


def _samples(samples: Sequence[tuple[int, int]], source_names: Sequence[str]) -> str:
    shown = [f"sample {number} of source {source_names[source]}" for source, number in samples[:SHOWN]]
    more = f" or {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
    return " or ".join(shown) + more
