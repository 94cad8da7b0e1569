"""Writes a file of blocks and hashes it on the way.

Place in the flow: conversion, a save and the process behind an asynchronous save write through it; imports no torch.
Invariant: a record of a file is given only after all of it is on disk, and its hash is that of the bytes handed to the
disk, not of what was read back.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cptron.checkpoint.archive import Archive
from cptron.checkpoint.blocks import Block


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of a checkpoint must be."""

    size: int
    sha256: str


class BlockFile:
    """One file of blocks, written from its start to its end within a `with` block, which forces it to disk."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.blocks: list[Block] = []
        self.record: FileRecord | None = None
        """Set when the `with` block ends without an error."""
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, "hash")  # beside the disk: both release the interpreter
        self._size = 0
        self._stream = (directory / name).open("wb", buffering=0)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(
        self, key: str, offsets: Sequence[int], sizes: Sequence[int], dtype: str, data: memoryview
    ) -> None:
        """Append the block of `sizes` that begins at `offsets` of tensor `key`; `data` is its bytes, row by row."""
        start = self._size
        archive = Archive(start)
        self._write(memoryview(archive.before(dtype, sizes)))
        where = self._size
        crc = self._write(data)
        self._write(memoryview(archive.after(crc, data.nbytes)))
        self.blocks.append(
            Block(key, tuple(offsets), tuple(sizes), self.name, start, self._size - start, where)
        )

    def _write(self, data: memoryview) -> int:
        """Write all of `data`; returns its CRC-32."""
        hashed = self._pool.submit(self._hash.update, data)
        crc = zlib.crc32(data)
        try:
            left = data
            while left.nbytes:
                left = left[self._stream.write(left) :]
        finally:
            hashed.result()  # before the memory is used for something else
        self._size += data.nbytes
        return crc

    def __enter__(self) -> BlockFile:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with self._stream, self._pool:
            if error is None:
                os.fsync(self._stream.fileno())
                self.record = FileRecord(self._size, self._hash.hexdigest())
