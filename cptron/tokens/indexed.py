"""Token files in Megatron's `.bin`/`.idx` layout: a checked, memory-mapped reader and a streaming writer.

Place in the flow: `preprocess` writes them -> `data` reads documents from them; Megatron's tools read and
write the same bytes.
Invariant: an `IndexedTokens` that could be opened is whole: every document lies inside `.bin` and has at
least one token. A `.idx` is published only after the `.bin` it describes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from cptron.errors import DataError
from cptron.tokens.index_layout import (
    CHUNK,
    CODE_OF_DTYPE,
    HEADER,
    MAGIC,
    REMEDY,
    VERSION,
    Index,
    Int32Array,
    Int64Array,
    bin_path,
    file_bytes,
    idx_path,
)

__all__ = ["IndexedTokens", "IndexedWriter", "best_dtype", "bin_path", "fsync_directory", "idx_path"]

TokenArray = npt.NDArray[np.integer[Any]]


def best_dtype(vocab_size: int) -> np.dtype[np.integer[Any]]:
    """Smallest token type for `vocab_size` ids, by Megatron's rule (so that files stay byte-identical)."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


class IndexedTokens:
    """Read-only token file. A document is what Megatron's document index says; empty documents are left out.

    Safe to hand to other processes: it travels as its prefix and is opened (and checked) again there.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Map and check both files. Raises DataError naming the file when it is missing or damaged."""
        self._prefix = str(prefix)
        index = Index(idx_path(prefix))
        self._dtype = index.dtype
        self._num_tokens = index.check_sequences()
        self._check_bin_size()
        self._lengths, self._start_bytes = index.documents()
        if self._num_tokens == 0:
            raise DataError(f"{bin_path(prefix)} holds 0 tokens, at least 1 is needed; {REMEDY}")
        self._tokens = np.memmap(bin_path(prefix), dtype=self._dtype, mode="r").view(np.ndarray)

    def _check_bin_size(self) -> None:
        path = bin_path(self._prefix)
        expected = self._num_tokens * self._dtype.itemsize
        actual = file_bytes(path)
        if actual != expected:
            raise DataError(f"{path} has {actual} bytes, its index requires {expected}; {REMEDY}")

    def __reduce__(self) -> tuple[type[IndexedTokens], tuple[str]]:
        return IndexedTokens, (self._prefix,)

    @property
    def prefix(self) -> str:
        """Path without `.bin` or `.idx`."""
        return self._prefix

    @property
    def num_documents(self) -> int:
        """Number of documents that have tokens."""
        return len(self._lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all documents."""
        return self._num_tokens

    @property
    def dtype(self) -> np.dtype[np.integer[Any]]:
        """Type of a token id in the file."""
        return self._dtype

    @property
    def lengths_tokens(self) -> Int32Array:
        """Tokens of each document, int32 [num_documents], read-only; every value is at least 1."""
        return self._lengths

    def read(self, document: int, offset: int = 0, length: int | None = None) -> TokenArray:
        """Ids of `length` tokens (default: the rest) of `document`, starting at its token `offset`.

        Returns a read-only view [length] in the file's dtype; nothing is copied. Raises IndexError when the
        range leaves the document.
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} must be in [0, {self.num_documents}) of {self._prefix}")
        available = int(self._lengths[document])
        if length is None:
            length = available - offset
        if offset < 0 or length < 0 or offset + length > available:
            raise IndexError(
                f"tokens [{offset}, {offset + length}) must lie in document {document} of {available} tokens"
            )
        start = int(self._start_bytes[document]) // self._dtype.itemsize + offset
        return self._tokens[start : start + length]


class IndexedWriter:
    """Streams documents into `PREFIX.bin` and `PREFIX.idx`; memory use does not grow with their number.

    Use it as a context manager: without `finish`, leaving the block removes everything it wrote.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike) -> None:
        """Create temporary files beside `prefix`. Raises DataError when `dtype` cannot be stored."""
        self._dtype = np.dtype(dtype)
        if self._dtype.name not in CODE_OF_DTYPE:
            raise DataError(
                f"dtype {self._dtype.name} must be one of {sorted(CODE_OF_DTYPE)}; use best_dtype"
            )
        self._limits = np.iinfo(self._dtype)
        self._prefix = str(prefix)
        # A name of its own, so that two writers of one prefix cannot mix their bytes.
        tag = secrets.token_hex(4)
        self._partial = {kind: Path(f"{prefix}.{kind}.{tag}.partial") for kind in ("bin", "idx", "lengths")}
        self._bin: BinaryIO = self._partial["bin"].open("xb")
        self._lengths: BinaryIO = self._partial["lengths"].open("x+b")
        self._num_documents = 0
        self._num_tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return self._num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._num_tokens

    def add(self, tokens: npt.ArrayLike) -> None:
        """Append one document of integer ids [length]. Raises DataError when empty or an id does not fit."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0:
            raise DataError(
                f"a document of shape {ids.shape} must be one row of >= 1 tokens; skip empty ones"
            )
        if ids.dtype.kind not in "iu":
            raise DataError(f"token ids have dtype {ids.dtype}, must be integers; convert them before adding")
        if ids.min() < self._limits.min or ids.max() > self._limits.max:
            raise DataError(
                f"token ids {ids.min()}..{ids.max()} must lie in {self._limits.min}..{self._limits.max} of "
                f"{self._dtype.name}; use best_dtype of the whole vocabulary"
            )
        self._bin.write(ids.astype(self._dtype).tobytes())
        self._lengths.write(struct.pack("<i", ids.size))
        self._num_documents += 1
        self._num_tokens += ids.size

    def finish(self) -> None:
        """Make both files durable and publish them, `.bin` before `.idx`. Raises DataError when empty."""
        if self._num_documents == 0:
            raise DataError(f"{self._prefix} would hold 0 documents, at least 1 is needed; check the input")
        _close_durably(self._bin)
        with self._partial["idx"].open("xb") as idx:
            self._write_index(idx)
            _close_durably(idx)
        # Without the old index, a stop between the two renames leaves no pair that looks whole.
        idx_path(self._prefix).unlink(missing_ok=True)
        self._partial["bin"].replace(bin_path(self._prefix))
        self._partial["idx"].replace(idx_path(self._prefix))
        fsync_directory(bin_path(self._prefix).parent)
        self.discard()

    def discard(self) -> None:
        """Remove what has not been published."""
        self._bin.close()
        self._lengths.close()
        for path in self._partial.values():
            path.unlink(missing_ok=True)

    def _write_index(self, idx: BinaryIO) -> None:
        code = CODE_OF_DTYPE[self._dtype.name]
        idx.write(HEADER.pack(MAGIC, VERSION, code, self._num_documents, self._num_documents + 1))
        self._lengths.seek(0)
        shutil.copyfileobj(self._lengths, idx, CHUNK)
        num_bytes = 0
        for lengths in self._spooled_lengths():
            ends = num_bytes + np.cumsum(lengths) * self._dtype.itemsize
            idx.write((ends - lengths * self._dtype.itemsize).astype("<i8").tobytes())
            num_bytes = int(ends[-1])
        for start in range(0, self._num_documents + 1, CHUNK):
            stop = min(start + CHUNK, self._num_documents + 1)
            idx.write(np.arange(start, stop, dtype="<i8").tobytes())

    def _spooled_lengths(self) -> Iterator[Int64Array]:
        self._lengths.seek(0)
        while chunk := self._lengths.read(4 * CHUNK):
            yield np.frombuffer(chunk, "<i4").astype(np.int64)


def fsync_directory(path: Path) -> None:
    """Make renames inside the directory `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _close_durably(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
