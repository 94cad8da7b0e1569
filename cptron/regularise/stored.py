"""Reads, of a checkpoint-like directory, one number for each element that this rank's optimizer updates.

Place in the flow: the starting weights and the Fisher information come from here, at every start anew: no run stores
them again, and any layout may read them. Invariant: what is returned is in the order of the stretches and whole, or
every rank raises; memory beyond it is that of one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from cptron.checkpoint.checksum import Checksums, add_up
from cptron.checkpoint.parts import Parts
from cptron.checkpoint.reader import ShardReader
from cptron.checkpoint.sharded import part_checksums, read_parts
from cptron.errors import CheckpointError
from cptron.optim.stretch import Stretch
from cptron.runtime.dist import agree

Keep = Callable[[torch.Tensor], torch.Tensor]
"""The form in which what was read in fp32 is kept."""


def read_stretches(
    shards: Path,
    parts: Parts,
    stretches: Sequence[Stretch],
    keep: Keep,
    *,
    vocab_size: int,
    stored: torch.dtype | None,
) -> tuple[list[torch.Tensor], Checksums]:
    """What `shards` hold of each stretch, and the checksum of every parameter that is updated anywhere, of elements of
    type `stored` (none where that is None); collective. Raises `CheckpointError` on every rank where anything is
    missing."""
    own: dict[str, int] = {}

    def read() -> list[torch.Tensor]:
        reader = ShardReader(shards)
        return [_read_one(reader, parts, stretch, keep, vocab_size, stored, own) for stretch in stretches]

    values = agree(read)
    by_rank: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, own)
    return values, add_up(by_rank)


def _read_one(
    reader: ShardReader,
    parts: Parts,
    stretch: Stretch,
    keep: Keep,
    vocab_size: int,
    stored: torch.dtype | None,
    sums: dict[str, int],
) -> torch.Tensor:
    value = torch.empty(stretch.stop - stretch.start, device=stretch.main.device)
    boxes = list(parts.boxes_of(stretch.param, stretch.start, stretch.stop, value))
    for box in boxes:
        if box.key not in reader.keys:
            raise CheckpointError(f"{reader.directory} lacks {box.key}; it is of another model")
        first = 1 if box.is_of_vocabulary else 0
        if reader.shape(box.key)[first:] != box.shape[first:]:
            raise CheckpointError(
                f"{reader.directory} has {box.key} of shape {list(reader.shape(box.key))}, this model "
                f"{list(box.shape)}; it is of another model"
            )
    read_parts(reader, boxes)
    if stored is not None and parts.is_first_copy(stretch.param):
        for name, number in part_checksums(boxes, vocab_size, stored).items():
            sums[name] = sums.get(name, 0) + number
    return keep(value)
