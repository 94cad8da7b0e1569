"""Writes a Hugging Face model's shards tensor by tensor: the header first, then each tensor's bytes as they come.

Place in the flow: the end of an export. Invariant: a file has exactly the tensors that were planned, in their order,
and the index names exactly what the files hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cptron.convert.safetensors_io import CODES, INDEX, SINGLE

MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file and its tensors."""

    file: str
    specs: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(spec.num_bytes for spec in self.specs)


def plan_shards(specs: Sequence[TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[ShardPlan]:
    """Cut the tensors, in their order, into files of at most `max_shard_bytes` (or one tensor)."""
    parts: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if parts[-1] and size + spec.num_bytes > max_shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(spec)
        size += spec.num_bytes
    if len(parts) == 1:
        return [ShardPlan(SINGLE, tuple(parts[0]))]
    count = len(parts)
    return [
        ShardPlan(f"model-{number + 1:05d}-of-{count:05d}.safetensors", tuple(part))
        for number, part in enumerate(parts)
    ]


def write_index(directory: Path, shards: Sequence[ShardPlan]) -> None:
    """Write the index of several files; a single one has none."""
    if len(shards) == 1:
        return
    weight_map = {spec.name: shard.file for shard in shards for spec in shard.specs}
    total = sum(shard.num_bytes for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))


class ShardFile:
    """One file being written, within a `with` block or until it is closed, which forces it to disk."""

    def __init__(self, directory: Path, plan: ShardPlan) -> None:
        self._left = list(plan.specs)
        self._bytes_left = plan.num_bytes
        self._stream = (directory / plan.file).open("wb")
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for spec in plan.specs:
            ends = [offset, offset + spec.num_bytes]
            header[spec.name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": ends}
            offset = ends[1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as the format asks for
        self._stream.write(len(text).to_bytes(8, "little") + text)

    @property
    def is_full(self) -> bool:
        """All bytes of its tensors are written."""
        return self._bytes_left == 0

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor."""
        spec = self._left.pop(0)
        assert (name, tuple(tensor.shape), tensor.dtype) == (spec.name, spec.shape, spec.dtype), name
        self.append(tensor)

    def append(self, block: torch.Tensor) -> None:
        """Append values that follow those before; a tensor may come in several blocks."""
        self._bytes_left -= block.nbytes
        assert self._bytes_left >= 0, "more than was planned"
        if block.numel():
            self._stream.write(block.contiguous().flatten().view(torch.uint8).numpy().data)

    def leave_hollow(self) -> None:
        """Give the file its full size without content, which takes no room on the disk; for trials of what reads
        headers only."""
        size = self._stream.tell() + self._bytes_left
        with self._stream:
            self._stream.truncate(size)

    def close(self) -> None:
        """Force the file to disk. All of its tensors must be there."""
        assert self.is_full, f"{self._bytes_left} bytes are missing"
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._stream.close()

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close() if error is None else self.abandon()
