"""The `.idx` half of Megatron's token files: header, dtype codes, and the checked arrays of an existing file.

Place in the flow: `indexed` reads and writes token files through it.
Invariant: an `Index` has exactly the size that its own counts require, so its arrays can be read unchecked.

Layout (little endian): magic (9 bytes), version u64 = 1, dtype code u8, sequence count u64, document index
count u64, sequence lengths i32[], sequence byte offsets i64[], document indices i64[].
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.errors import DataError

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
# Codes 6 and 7 are Megatron's float types, which cannot hold tokens.
CODE_OF_DTYPE = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
CHUNK = 1 << 20
"""Entries handled at once, so that memory stays bounded for any number of documents."""
REMEDY = "run preprocess again"

_DTYPE_OF_CODE = {code: np.dtype(name) for name, code in CODE_OF_DTYPE.items()}


def bin_path(prefix: str | Path) -> Path:
    """Path of the token ids of `prefix`."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Path of the document index of `prefix`."""
    return Path(f"{prefix}.idx")


def loss_mask_path(prefix: str | Path) -> Path:
    """Path of the loss mask of `prefix`: one uint8 for each token of `.bin`, 1 where the token is learned."""
    return Path(f"{prefix}.loss_mask.bin")


class Index:
    """The arrays of one `.idx` file, mapped; its size has been checked against its own counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        actual = file_bytes(path)
        if actual < HEADER.size:
            raise DataError(f"{path} has {actual} bytes, a header alone has {HEADER.size}; {REMEDY}")
        with path.open("rb") as stream:
            magic, version, code, num_sequences, num_indices = HEADER.unpack(stream.read(HEADER.size))
        if magic != MAGIC:
            raise DataError(f"{path} starts with {magic!r}, a token index with {MAGIC!r}; {REMEDY}")
        if version != VERSION:
            raise DataError(f"{path} has version {version}, only {VERSION} can be read; {REMEDY}")
        if code not in _DTYPE_OF_CODE:
            raise DataError(f"{path} has dtype code {code}, must be in {sorted(_DTYPE_OF_CODE)}; {REMEDY}")
        expected = HEADER.size + 12 * num_sequences + 8 * num_indices
        if actual != expected:
            raise DataError(f"{path} has {actual} bytes, its counts require {expected}; {REMEDY}")
        self.dtype: np.dtype[np.integer[Any]] = _DTYPE_OF_CODE[code]
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        self.lengths: Int32Array = np.frombuffer(raw, "<i4", num_sequences, HEADER.size)
        self.pointers: Int64Array = np.frombuffer(raw, "<i8", num_sequences, HEADER.size + 4 * num_sequences)
        self.document_indices: Int64Array = np.frombuffer(
            raw, "<i8", num_indices, HEADER.size + 12 * num_sequences
        )

    def check_sequences(self) -> int:
        """Prove that the sequences lie one after the other without gaps; return their total in tokens."""
        total = 0
        for start in range(0, len(self.lengths), CHUNK):
            lengths = self.lengths[start : start + CHUNK].astype(np.int64)
            if lengths.min() < 0:
                raise DataError(f"{self.path} has sequence length {lengths.min()}, must be >= 0; {REMEDY}")
            ends = total + np.cumsum(lengths)
            starts = (ends - lengths) * self.dtype.itemsize
            wrong = np.flatnonzero(self.pointers[start : start + CHUNK] != starts)
            if len(wrong):
                at = int(wrong[0])
                raise DataError(
                    f"{self.path} puts sequence {start + at} at byte {self.pointers[start + at]}, "
                    f"the lengths before it require {starts[at]}; {REMEDY}"
                )
            total = int(ends[-1])
        return total

    def documents(self) -> tuple[Int32Array, Int64Array]:
        """Length in tokens and first byte of every document that has tokens; views of the file (which starts
        them at byte 34, so they are unaligned) where each document is one sequence."""
        bounds = self.document_indices
        num_sequences = len(self.lengths)
        if (
            len(bounds) == 0
            or bounds[0] != 0
            or bounds[-1] != num_sequences
            or (bounds[1:] < bounds[:-1]).any()
        ):
            raise DataError(
                f"{self.path} has document indices that must rise from 0 to {num_sequences} sequences; {REMEDY}"
            )
        if self._one_sequence_per_document() and self.lengths.all():
            return self.lengths, self.pointers
        return self._joined_documents()

    def _one_sequence_per_document(self) -> bool:
        bounds = self.document_indices
        if len(bounds) != len(self.lengths) + 1:
            return False
        return all(
            np.array_equal(bounds[start : start + CHUNK], np.arange(start, min(start + CHUNK, len(bounds))))
            for start in range(0, len(bounds), CHUNK)
        )

    def _joined_documents(self) -> tuple[Int32Array, Int64Array]:
        """Documents of several sequences (Megatron's `--split-sentences`) or of none (empty texts)."""
        ends = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))[self.document_indices]
        lengths = np.diff(ends)
        kept = lengths > 0
        if len(lengths) and lengths.max() > np.iinfo(np.int32).max:
            raise DataError(
                f"{self.path} has a document of {lengths.max()} tokens, at most 2147483647 can be read; "
                "split that document and run preprocess again"
            )
        lengths_i32 = lengths[kept].astype(np.int32)
        lengths_i32.flags.writeable = False
        return lengths_i32, ends[:-1][kept] * self.dtype.itemsize


def file_bytes(path: Path) -> int:
    """Size of `path`. Raises DataError when it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, .bin and .idx are both needed; {REMEDY}") from None
