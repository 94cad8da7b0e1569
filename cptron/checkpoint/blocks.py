"""The index of a checkpoint's tensors: which bytes of which file are which block of which tensor.

Place in the flow: written beside the shards by conversion and by every save, read by `reader`; imports no torch.
Invariant: an index that `read_index` returns refers to nothing outside of its directory, and its blocks have as many
bytes as their sizes and type say.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron.durable import replace_text
from cptron.errors import CheckpointError
from cptron.json_text import is_file_name, parse_json

INDEX = "index.json"
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Types of stored tensors, and bytes of an element."""
_MOST = 2**62


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A stored tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Block:
    """A box of a stored tensor, and where it is: `length` bytes from `start` are an archive as torch saves one tensor;
    within it the elements themselves, row by row, begin at byte `data` of the file."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int
    data: int

    def to_list(self) -> list[Any]:
        """JSON form; `of` inverts it."""
        return [self.key, self.offsets, self.sizes, self.file, self.start, self.length, self.data]

    @classmethod
    def of(cls, values: Sequence[Any]) -> Block:
        """Rebuild from `to_list` output. Raises TypeError or ValueError."""
        key, offsets, sizes, file, start, length, data = values
        numbers = (*offsets, *sizes, start, length, data)
        if not all(type(number) is int and 0 <= number < _MOST for number in numbers):
            raise ValueError(f"block of {key!r:.80} has {numbers!r:.80}, must have integers from 0")
        if not isinstance(key, str) or not isinstance(file, str):
            raise TypeError(f"block {key!r:.80} in {file!r:.80} must be named by strings")
        names = sys.intern(key), sys.intern(file)  # few, and each in thousands of blocks
        return cls(names[0], tuple(offsets), tuple(sizes), names[1], start, length, data)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """All tensors of a checkpoint."""

    tensors: Mapping[str, TensorRecord]
    blocks: Sequence[Block]
    common: Mapping[str, Any]
    """What is no tensor: the optimizer's step and settings."""


def write_index(
    directory: Path,
    tensors: Mapping[str, TensorRecord],
    blocks: Iterable[Block],
    common: Mapping[str, Any] | None = None,
) -> None:
    """Write the index of the shards in `directory`. Blocks that do not fill a tensor exactly are a bug."""
    blocks = list(blocks)
    filled = dict.fromkeys(tensors, 0)
    for block in blocks:
        filled[block.key] += math.prod(block.sizes)
    for key, record in tensors.items():
        assert filled[key] == math.prod(record.shape), f"{key}: {filled[key]} of {record.shape} are written"
    values = {
        "tensors": {key: [record.shape, record.dtype] for key, record in tensors.items()},
        "common": dict(common or {}),
        "blocks": [block.to_list() for block in blocks],
    }
    replace_text(directory / INDEX, json.dumps(values))


def read_index(directory: Path) -> ShardIndex:
    """The index of the shards in `directory`. Raises `CheckpointError` when it is absent or damaged."""
    path = directory / INDEX
    try:
        values = parse_json(path.read_text())
        tensors = {key: _tensor(record) for key, record in values["tensors"].items()}
        blocks = [Block.of(block) for block in values["blocks"]]
        for block in blocks:
            _check(block, tensors[block.key])
        return ShardIndex(tensors, blocks, dict(values["common"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r:.200}); use another checkpoint") from None


def _tensor(values: Sequence[Any]) -> TensorRecord:
    shape, dtype = values
    if dtype not in ITEM_BYTES or not all(type(size) is int and 0 <= size < _MOST for size in shape):
        raise ValueError(f"a tensor of shape {shape!r:.80} and type {dtype!r:.40}")
    return TensorRecord(tuple(shape), dtype)


def _check(block: Block, tensor: TensorRecord) -> None:
    ends = [first + size for first, size in zip(block.offsets, block.sizes, strict=True)]
    if not all(end <= size for end, size in zip(ends, tensor.shape, strict=True)):
        raise ValueError(f"a block of {block.key:.80} reaches beyond its tensor")
    if not is_file_name(block.file):
        raise ValueError(f"{block.file!r:.80} is outside of the checkpoint")
    num_bytes = math.prod(block.sizes) * ITEM_BYTES[tensor.dtype]
    if not block.start <= block.data <= block.data + num_bytes <= block.start + block.length:
        raise ValueError(f"a block of {block.key:.80} has other bytes than its sizes say")
