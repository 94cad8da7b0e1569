"""Model and optimizer as shards: every rank writes and reads its own part, under any layout.

Place in the flow: inside a checkpoint directory (`layout`); `parts` says what is whose. Invariant: a load fills every
parameter asked for or raises on all ranks; and no code stored in a checkpoint is ever run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cptron.checkpoint.block_file import FileRecord
from cptron.checkpoint.block_writer import BLOCK_BYTES, BlockSpec, Written, write_blocks
from cptron.checkpoint.blocks import TensorRecord, write_index
from cptron.checkpoint.boxes import pieces
from cptron.checkpoint.checksum import Checksums, add_up, checksum
from cptron.checkpoint.hashing import num_threads
from cptron.checkpoint.parts import OPTIMIZER, Holds, Part, Parts, everything
from cptron.checkpoint.reader import ShardReader
from cptron.checkpoint.tensor_bytes import bytes_of, dtype_name
from cptron.checkpoint.torch_dist import write_torch_index
from cptron.errors import CheckpointError
from cptron.optim.stored_state import make_state, set_step, step_of
from cptron.runtime.dist import agree


def weight_checksums(
    chunks: Sequence[Any], vocab_size: int, dtype: torch.dtype | None = None, *, holds: Holds = everything
) -> Checksums:
    """Checksum of every parameter that `holds` says, over all ranks; collective. With `dtype` of the weights rounded
    to it. Padding rows of the vocabulary do not count, since their number depends on the layout."""
    own = part_checksums(Parts(chunks, holds=holds).to_write(), vocab_size, dtype)
    by_rank: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, own)
    return add_up(by_rank)


def part_checksums(
    parts: Iterable[Part], vocab_size: int, dtype: torch.dtype | None = None
) -> dict[str, int]:
    """What each parameter's checksum is made of here: the sum over `parts`, rounded to `dtype`."""
    own: dict[str, int] = {}
    for part in parts:
        first_row, *first_column = part.offsets[part.above :]
        data = part.tensor.reshape(part.sizes[part.above :])
        data = data if dtype is None else data.to(dtype)
        if part.is_of_vocabulary:
            data = data[: max(vocab_size - first_row, 0)]
        if len(data):
            own[part.parameter] = own.get(part.parameter, 0) + checksum(data, first_row, *first_column)
    return own


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one rank writes."""

    records: dict[str, TensorRecord]
    """Every stored tensor that it has a part of."""
    blocks: list[tuple[BlockSpec, torch.Tensor]]
    """The blocks and their elements, which are views of what training works with."""
    optimizer_step: int | None

    @classmethod
    def of(
        cls, chunks: Sequence[Any], optimizer: Any | None, vocab_size: int, holds: Holds = everything
    ) -> Holdings:
        """Of this rank; `chunks` are unwrapped modules."""
        step = None if optimizer is None else step_of(optimizer)
        return cls.of_parts(Parts(chunks, optimizer, holds).to_write(), vocab_size, step)

    @classmethod
    def of_parts(cls, parts: Iterable[Part], vocab_size: int, optimizer_step: int | None = None) -> Holdings:
        """Of these parts."""
        records: dict[str, TensorRecord] = {}
        blocks: list[tuple[BlockSpec, torch.Tensor]] = []
        for part in parts:
            dtype = dtype_name(part.tensor.dtype)
            records[part.key] = TensorRecord(part.shape, dtype)
            blocks.extend(_blocks(part, dtype, vocab_size))
        return cls(records, blocks, optimizer_step)

    def write(self, shards: Path, rank: int) -> Written:
        """Write all blocks now. Raises OSError."""
        return write_blocks(shards, rank, ((spec, bytes_of(tensor)) for spec, tensor in self.blocks))

    def report(self, written: Written) -> Report:
        """What `complete_shards` must know of this rank, once its blocks are written."""
        return self.records, self.optimizer_step, written


Report = tuple[dict[str, TensorRecord], int | None, Written]


def complete_shards(shards: Path, reports: Sequence[Report]) -> tuple[dict[str, FileRecord], Checksums]:
    """Write the index over what all ranks have written, on one of them; returns the files of blocks and the checksums
    of all weights. Raises OSError."""
    records = {key: record for found, _, _ in reports for key, record in found.items()}
    blocks = [block for _, _, written in reports for block in written.blocks]
    steps = [step for _, step, _ in reports if step is not None]
    write_index(shards, records, blocks, {"optimizer_step": max(steps, default=None)})
    write_torch_index(shards, records, blocks)
    files = {name: file for _, _, written in reports for name, file in written.files.items()}
    return files, add_up([written.checksums for _, _, written in reports])


def _blocks(part: Part, dtype: str, vocab_size: int) -> Iterator[tuple[BlockSpec, torch.Tensor]]:
    """A part in blocks of a size that is handled at once."""
    flat = part.tensor.reshape(-1)
    at = 0
    for offsets, sizes in pieces((part.offsets, part.sizes), BLOCK_BYTES // flat.element_size()):
        count = math.prod(sizes)
        spec = BlockSpec(part.key, offsets, sizes, dtype)
        if not part.key.startswith(OPTIMIZER):
            first_row, *first_column = offsets[part.above :]
            rows, *columns = sizes[part.above :]
            if part.is_of_vocabulary:
                rows = min(rows, max(vocab_size - first_row, 0))
            column = first_column[0] if first_column else 0
            width = columns[0] if columns else 1
            matrix = (rows, width)
            spec = replace(spec, parameter=part.parameter, place=(first_row, column), matrix=matrix)
        yield spec, flat[at : at + count]
        at += count


def load_shards(
    shards: Path, chunks: Sequence[Any], optimizer: Any | None = None, *, holds: Holds = everything
) -> None:
    """Fill the parameters that `holds` says, and the optimizer where given; collective. Raises `CheckpointError`
    on anything missing."""
    reader = agree(lambda: ShardReader(shards))
    if optimizer is not None:
        make_state(optimizer)
    parts = Parts(chunks, optimizer, holds)
    of_model = list(parts.of_model())
    of_optimizer = list(parts.of_optimizer()) if optimizer is not None else []
    _require_same(reader, [*of_model, *of_optimizer], optimizer is not None)
    agree(lambda: read_parts(reader, of_model))
    agree(
        lambda: read_parts(reader, of_optimizer)
    )  # last: without bf16 the masters are the parameters themselves
    parts.put_back()
    if optimizer is not None:
        set_step(optimizer, reader.common.get("optimizer_step"))


def _require_same(reader: ShardReader, wanted: Sequence[Part], with_optimizer: bool) -> None:
    """Raise on every rank unless the shards have what any rank wants, of its shape, and nothing else; collective."""
    own = {part.key: (part.shape, part.is_of_vocabulary) for part in wanted}
    by_rank: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, own)
    asked = {key: found for rank in by_rank for key, found in rank.items()}
    stored = {key for key in reader.keys if with_optimizer or not key.startswith(OPTIMIZER)}
    for what, wrong in (
        ("lacks", asked.keys() - stored),
        ("holds parameters this model does not have:", stored - asked.keys()),
    ):
        if wrong:
            names = sorted(wrong)
            advice = (
                "keep the optimizer and what is trained as they were"
                if all(name.startswith(OPTIMIZER) for name in names)
                else "it is of another model"
            )
            raise CheckpointError(
                f"{reader.directory} {what} {', '.join(names[:3])} ({len(names)} in all); {advice}"
            )
    for key, (shape, is_of_vocabulary) in asked.items():
        found = reader.shape(key)
        first = 1 if is_of_vocabulary else 0
        if found[first:] != shape[first:]:
            raise CheckpointError(
                f"{reader.directory} has {key} of shape {list(found)}, this model {list(shape)}; it is of another model"
            )


def read_parts(reader: ShardReader, wanted: Sequence[Part]) -> None:
    """Fill this rank's parts, on threads. Raises `CheckpointError`."""
    with ThreadPoolExecutor(num_threads(), "load") as pool, torch.no_grad():
        for _ in pool.map(lambda part: _read_part(reader, part), wanted):
            pass


@torch.no_grad()
def _read_part(reader: ShardReader, part: Part) -> None:
    box = part.tensor.view(part.sizes)
    if part.is_of_vocabulary:  # other layouts pad it to other lengths
        rows = max(reader.shape(part.key)[0] - part.offsets[0], 0)
        box[rows:].zero_()
        box = box[:rows]
    if len(box):
        reader.read_into(part.key, part.offsets, box)
