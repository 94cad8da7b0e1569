"""Stretches of a flattened tensor as boxes of the tensor.

Place in the flow: a rank of the distributed optimizer owns a stretch of each parameter's elements; it writes and reads
just these, as boxes, which is what checkpoints are made of. Imports no torch. Invariant: the boxes of a stretch have
all of its elements, each once, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where it begins, and its sizes."""


def boxes(start: int, stop: int, shape: Sequence[int]) -> Iterator[Box]:
    """The elements `start` to `stop` of a tensor of `shape` in row-major order: the end of a row, whole rows, and the
    beginning of a row, at each level."""
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        yield from _within(start // row, start % row, stop - start // row * row, shape)
        return
    if start < first * row:
        yield from _within(first - 1, start % row, row, shape)
    if first < last:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
    if last * row < stop:
        yield from _within(last, 0, stop - last * row, shape)


def _within(row: int, start: int, stop: int, shape: Sequence[int]) -> Iterator[Box]:
    for offsets, sizes in boxes(start, stop, shape[1:]):
        yield (row, *offsets), (1, *sizes)


def pieces(box: Box, most: int) -> Iterator[Box]:
    """The box cut along its first axis of more than one index into pieces of about `most` elements."""
    offsets, sizes = box
    numel = math.prod(sizes)
    axis = next((axis for axis, size in enumerate(sizes) if size > 1), 0)
    step = max(1, sizes[axis] * most // max(numel, 1))
    for start in range(0, sizes[axis], step):
        size = min(step, sizes[axis] - start)
        yield (
            (*offsets[:axis], offsets[axis] + start, *offsets[axis + 1 :]),
            (*sizes[:axis], size, *sizes[axis + 1 :]),
        )
