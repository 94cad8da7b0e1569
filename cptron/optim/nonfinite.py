"""Which parameters' gradients are not finite, and on which ranks they became so.

Place in the flow: `apply_gradients` asks when the global norm is not finite, before anything changed. Invariant:
collective; every rank gets the same text, and it claims no more than can be known.

A rank's own gradient is overwritten by the reduction only where the rank owns a shard; elsewhere the gradient
buffer still holds what this rank alone computed. So a bad value outside a rank's shard is its own doing. A bad
value inside a shard is a sum over the data parallel ranks: when no other rank has one, it is the owner's doing.
What is shared between tensor ranks or stages (norms with sequence parallel, tied embeddings) has been summed over
them as well, and then all of them are named. Parameters are named in the order of the backward pass, so that the first
is where it began.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cptron.optim.names import named_parameters

SHOWN = 4
"""Parameters named in the message."""


class _Finding(NamedTuple):
    name: str
    rank: int
    place: tuple[int, int]
    """Tensor rank and stage."""
    own: bool
    """Seen where the buffer holds this rank's own gradient only."""
    elements: int
    position: tuple[int, int]
    """Of its chunk in the model, and in its chunk."""


def describe_nonfinite(chunks: Sequence[Any]) -> str:
    """One sentence naming the first few parameters, with their ranks; the same on every rank."""
    by_rank: list[list[_Finding]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, list(_local_findings(chunks)))
    found = sorted(
        (finding for findings in by_rank for finding in findings), key=lambda f: f.position, reverse=True
    )
    if not found:
        return "every parameter has a finite gradient"
    names = list(dict.fromkeys(finding.name for finding in found))
    shown = [f"{name} {_origin([f for f in found if f.name == name])}" for name in names[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} parameter(s) with NaN or Inf in the gradient: {', '.join(shown)}{more}"


def _origin(findings: list[_Finding]) -> str:
    """`(on rank 2: tp 0, pp 1)`: the ranks known to be at fault, at each place in the model."""
    at_fault: list[str] = []
    for place in sorted({finding.place for finding in findings}):
        here = [finding for finding in findings if finding.place == place]
        known = sorted({f.rank for f in here if f.own} or {f.rank for f in here})
        ranks = ", ".join(map(str, known))
        at_fault.append(f"rank {ranks}: tp {place[0]}, pp {place[1]}")
    return f"(on {'; '.join(at_fault)})"


def _local_findings(chunks: Sequence[Any]) -> Iterator[_Finding]:
    rank = dist.get_rank()
    for number, chunk in enumerate(chunks):
        names = {param: (index, name) for index, (name, param) in enumerate(named_parameters([chunk]))}
        place = (chunk.tp_group.rank(), chunk.pp_group.rank())
        part = number * chunk.pp_group.size() + chunk.pp_group.rank()
        for buffer in chunk.buffers + chunk.expert_parallel_buffers:
            for param in buffer.params:
                bad = ~torch.isfinite(param.main_grad).view(-1)
                elements = int(bad.sum())
                if elements:
                    start, stop = (
                        _owned(buffer, param) if chunk.ddp_config.use_distributed_optimizer else (0, 0)
                    )
                    reduced = int(bad[start:stop].sum()) if stop > start else 0
                    own = chunk.ddp_config.use_distributed_optimizer and elements > reduced
                    index, name = names[param]
                    yield _Finding(name, rank, place, own, elements, (part, index))


def _owned(buffer: Any, param: torch.Tensor) -> tuple[int, int]:
    """The elements of `param` that lie in this rank's shard, which the reduction has overwritten."""
    start, stop, bucket_id = buffer.param_index_map[param]
    bucket = next(bucket for bucket in buffer.buckets if bucket.bucket_id == bucket_id)
    shard = bucket.grad_data.numel() // buffer.data_parallel_group.size()
    shard_start = bucket.offset + buffer.data_parallel_group.rank() * shard
    return max(start, shard_start) - start, min(stop, shard_start + shard) - start
