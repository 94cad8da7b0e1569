"""Reads any box of any stored tensor.

Place in the flow: loads for training, evaluation and export read through it. Invariant: what it returns is whole, or
it raises; nothing is unpickled, and no more memory is used than the box and, where only columns are wanted, the rows
they are in.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from cptron.checkpoint.blocks import Block, read_index
from cptron.checkpoint.tensor_bytes import DTYPES
from cptron.errors import CheckpointError

Slices = tuple[slice, ...]


class Reader(Protocol):
    """Tensors by key, of our checkpoints and of others'."""

    directory: Path

    @property
    def keys(self) -> set[str]:
        """Names of all stored tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""

    def dtype(self, key: str) -> torch.dtype:
        """Type of a stored tensor."""

    def read(
        self, key: str, offsets: Sequence[int] | None = None, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The block of `sizes` that begins at `offsets`; without them the whole tensor."""


class ShardReader:
    """The tensors of one of our checkpoints. Raises `CheckpointError` on damage. Safe for threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index = read_index(directory)
        self.common = self._index.common
        """What is stored beside tensors."""
        self._blocks: dict[str, list[Block]] = {key: [] for key in self._index.tensors}
        for block in sorted(self._index.blocks, key=lambda block: block.offsets):
            self._blocks[block.key].append(block)
        self._most_rows = {
            key: max((block.sizes[0] for block in blocks if block.sizes), default=0)
            for key, blocks in self._blocks.items()
        }
        self._require_files()
        self._elements = {
            key: sum(math.prod(block.sizes) for block in blocks) for key, blocks in self._blocks.items()
        }
        """What the blocks of each tensor hold together."""

    def _require_files(self) -> None:
        """Raise unless every block lies within its file."""
        ends: dict[str, int] = {}
        for block in self._index.blocks:
            ends[block.file] = max(ends.get(block.file, 0), block.start + block.length)
        for name, end in ends.items():
            path = self.directory / name
            found = path.stat().st_size if path.is_file() else None
            if found is None or found < end:
                raise CheckpointError(
                    f"{path} has {found} bytes, its index requires {end}; use another checkpoint"
                )

    @property
    def keys(self) -> set[str]:
        """Names of all stored tensors."""
        return set(self._blocks)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self._index.tensors[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Type of a stored tensor."""
        return DTYPES[self._index.tensors[key].dtype]

    def read(
        self, key: str, offsets: Sequence[int] | None = None, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The block of `sizes` that begins at `offsets`; without them the whole tensor."""
        offsets = [0] * len(self.shape(key)) if offsets is None else offsets
        sizes = self.shape(key) if sizes is None else sizes
        if math.prod(sizes) > self._elements[key]:  # before memory is taken for them
            require_filled(self.directory, key, offsets, self._elements[key], math.prod(sizes))
        box = torch.empty(tuple(sizes), dtype=self.dtype(key))
        self.read_into(key, offsets, box)
        return box

    def read_into(self, key: str, offsets: Sequence[int], box: torch.Tensor) -> None:
        """Fill `box`, of any type and on any device, from the block of its shape that begins at `offsets`."""
        found = [
            (block, *inside)
            for block in self._near(key, offsets, box.shape)
            if (inside := overlap(offsets, box.shape, block.offsets, block.sizes)) is not None
        ]
        targets = [target for _, target, _ in found]
        require_apart(self.directory, key, targets)
        require_filled(self.directory, key, offsets, sum(map(numel, targets)), box.numel())
        for block, target, source in found:
            self._copy(block, source, box[target])

    def _near(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Sequence[Block]:
        """The blocks that may meet a box: all that have some of its first axis. Looked up, since a large run has a
        million blocks and a thousand boxes."""
        blocks = self._blocks[key]
        if not sizes:
            return blocks
        low = bisect_left(blocks, offsets[0] - self._most_rows[key] + 1, key=_first_row)
        return blocks[low : bisect_left(blocks, offsets[0] + sizes[0], key=_first_row)]

    def _copy(self, block: Block, source: Slices, target: torch.Tensor) -> None:
        """Copy the part `source` of a block; `target` is a view."""
        dtype = self.dtype(block.key)
        rows = source[: _first_cut(source, block.sizes) + 1]
        num_elements, first = _extent(rows, block.sizes)
        direct = target.dtype == dtype and target.device.type == "cpu" and target.is_contiguous()
        whole = target.numel() == num_elements
        buffer = target.view(-1) if direct and whole else torch.empty(num_elements, dtype=dtype)
        item = dtype.itemsize
        self._pread(block, buffer.view(torch.uint8).numpy().data, block.data + first * item)
        if buffer.data_ptr() == target.data_ptr():
            return
        if whole:
            target.copy_(buffer.view(target.shape))
            return
        spanned = [s.stop - s.start for s in rows] + list(block.sizes[len(rows) :])
        target.copy_(buffer.view(spanned)[(slice(None),) * len(rows) + source[len(rows) :]])

    def _pread(self, block: Block, buffer: memoryview, at: int) -> None:
        path = self.directory / block.file
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                while buffer.nbytes:
                    count = os.preadv(descriptor, [buffer], at)
                    if count == 0:
                        raise OSError(f"it ends before byte {at + buffer.nbytes}")
                    buffer, at = buffer[count:], at + count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from None


def _first_row(block: Block) -> int:
    return block.offsets[0]


def _first_cut(source: Slices, sizes: Sequence[int]) -> int:
    """The first axis along which more than one index is wanted: up to it the part lies in one stretch of rows."""
    for axis, part in enumerate(source):
        if part.stop - part.start > 1:
            return axis
    return len(sizes) - 1


def _extent(rows: Slices, sizes: Sequence[int]) -> tuple[int, int]:
    """Elements of the stretch that `rows` span with all that is below them, and where it begins in the block."""
    below = 1
    for size in sizes[len(rows) :]:
        below *= size
    count = first = 0
    stride = below
    count = below
    for part, size in zip(reversed(rows), reversed(sizes[: len(rows)]), strict=True):
        count *= part.stop - part.start
        first += part.start * stride
        stride *= size
    return count, first


def overlap(
    offsets: Sequence[int], sizes: Sequence[int], other: Sequence[int], other_sizes: Sequence[int]
) -> tuple[Slices, Slices] | None:
    """Where the wanted block and another meet: within the wanted, and within the other."""
    target, source = [], []
    for first, size, other_first, other_size in zip(offsets, sizes, other, other_sizes, strict=True):
        start, end = max(first, other_first), min(first + size, other_first + other_size)
        if start >= end:
            return None
        target.append(slice(start - first, end - first))
        source.append(slice(start - other_first, end - other_first))
    return tuple(target), tuple(source)


def numel(box: Slices) -> int:
    """Elements of a box."""
    return math.prod(part.stop - part.start for part in box)


def require_apart(directory: Path, key: str, targets: Sequence[Slices]) -> None:
    """Raise where two of `targets` have an element in common. Only those are compared that reach over each other along
    the first axis on which not all are alike."""
    cut = (axis for axis, parts in enumerate(zip(*targets, strict=True)) if any(p != parts[0] for p in parts))
    axis = next(cut, None)
    if len(targets) > 1 and (axis is None or _meet(targets, axis)):
        raise CheckpointError(f"{directory} has blocks of {key} that overlap; it is damaged")


def _meet(targets: Sequence[Slices], axis: int) -> bool:
    """Whether two of them do."""
    reaching: list[Slices] = []
    for target in sorted(targets, key=lambda target: target[axis].start):
        reaching = [other for other in reaching if other[axis].stop > target[axis].start]
        if any(
            all(a.start < b.stop and b.start < a.stop for a, b in zip(target, other, strict=True))
            for other in reaching
        ):
            return True
        reaching.append(target)
    return False


def require_filled(directory: Path, key: str, offsets: Sequence[int], filled: int, wanted: int) -> None:
    """Raise unless every wanted element was there."""
    if filled != wanted:
        raise CheckpointError(
            f"{directory} holds {filled} of {wanted} elements of {key} at {list(offsets)}; "
            "it is damaged: use another checkpoint"
        )
