"""Writes a rank's blocks to files, in its own process or in another.

Place in the flow: behind every save, synchronous or not; imports no torch, so that a process that does nothing else is
small. Invariant: what it reports is on disk; files are hashed and weights checksummed from the bytes that were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cptron.checkpoint.block_file import BlockFile, FileRecord
from cptron.checkpoint.blocks import ITEM_BYTES, Block
from cptron.data.kernels import checksum

FILE_BYTES = 2**30
"""A rank begins another file beyond it, so that files are hashed side by side when they are read."""
BLOCK_BYTES = 2**28
_BITS = {2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A block that is to be written."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    parameter: str = ""
    """Whose checksum its elements count to; none for optimizer state."""
    place: tuple[int, int] = (0, 0)
    """Row and column of its first element in the parameter."""
    matrix: tuple[int, int] = (0, 0)
    """Rows and columns that count; the padding of a vocabulary does not."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.sizes) * ITEM_BYTES[self.dtype]


@dataclass
class Written:
    """What a rank has written."""

    blocks: list[Block] = field(default_factory=list)
    files: dict[str, FileRecord] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    """This rank's part of the checksum of each parameter."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `of` inverts it."""
        files = {name: asdict(record) for name, record in self.files.items()}
        return {"blocks": [b.to_list() for b in self.blocks], "files": files, "checksums": self.checksums}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Written:
        """Rebuild from `to_dict` output."""
        files = {name: FileRecord(**record) for name, record in values["files"].items()}
        return cls([Block.of(block) for block in values["blocks"]], files, values["checksums"])


def write_blocks(directory: Path, rank: int, blocks: Iterable[tuple[BlockSpec, memoryview]]) -> Written:
    """Write `blocks` to files of `rank` in `directory`, and force them to disk. Raises OSError."""
    written = Written()
    waiting = iter(blocks)
    block = next(waiting, None)
    while block is not None:
        with BlockFile(directory, f"__{rank}_{len(written.files)}.distcp") as file:
            while block is not None and file.size < FILE_BYTES:
                spec, data = block
                file.write(spec.key, spec.offsets, spec.sizes, spec.dtype, data)
                if spec.parameter:
                    before = written.checksums.get(spec.parameter, 0)
                    written.checksums[spec.parameter] = before + _checksum(spec, data)
                block = next(waiting, None)
        assert file.record is not None
        written.files[file.name] = file.record
        written.blocks += file.blocks
    return written


def _checksum(spec: BlockSpec, data: memoryview) -> int:
    rows, columns = spec.matrix
    if not rows:
        return 0
    bits = np.frombuffer(data, dtype=_BITS[ITEM_BYTES[spec.dtype]], count=rows * columns)
    return int(checksum(bits.reshape(rows, columns), *spec.place))
