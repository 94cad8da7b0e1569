"""Token files in Megatron's `.bin`/`.idx` layout: a checked, memory-mapped reader.

Place in the flow: `indexed_writer` (or Megatron) writes them -> `data` reads documents from them.
Invariant: a read gives tokens of the document asked for, or an error. What was opened by its constructor is
whole; what was opened on the word of a manifest has been checked when that was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.errors import DataError
from cptron.tokens.index_layout import REMEDY, Index, Int32Array, Int64Array, bin_path, file_bytes, idx_path

__all__ = ["IndexedTokens", "TokenArray", "bin_path", "idx_path"]

TokenArray = npt.NDArray[np.integer[Any]]


class IndexedTokens:
    """Read-only token file. A document is what Megatron's document index says; empty documents are left out.

    Safe to hand to other processes: it travels as its prefix and is opened (and checked) again there.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Map both files and check every document. Raises DataError naming the file when it is missing or
        damaged."""
        self._open(prefix)
        self._num_tokens = self._index.check_sequences()
        self._check_bin_size()
        self._lengths, self._start_bytes = self._index.documents()
        self._map_tokens()

    @classmethod
    def recorded(cls, prefix: str | Path, documents: int, tokens: int) -> IndexedTokens:
        """Map files whose counts a manifest records, without a scan: it takes no time, however large they are.

        Reads are still checked against the size of `.bin`. Raises DataError when sizes and counts disagree.
        """
        found = cls.__new__(cls)
        found._open(prefix)
        index = found._index
        if not len(index.lengths) == len(index.document_indices) - 1 == documents:
            return cls(prefix)  # documents of several sequences, or empty ones: they must be put together
        found._num_tokens = tokens
        found._check_bin_size()
        found._lengths, found._start_bytes = index.lengths, index.pointers
        found._map_tokens()
        return found

    def _open(self, prefix: str | Path) -> None:
        self._prefix = str(prefix)
        self._index = Index(idx_path(prefix))
        self._dtype = self._index.dtype

    def _map_tokens(self) -> None:
        if self._num_tokens == 0:
            raise DataError(f"{bin_path(self._prefix)} holds 0 tokens, at least 1 is needed; {REMEDY}")
        self._tokens = np.memmap(bin_path(self._prefix), dtype=self._dtype, mode="r").view(np.ndarray)

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

    @property
    def start_bytes(self) -> Int64Array:
        """Offset in `.bin` of each document, int64 [num_documents]; like `lengths_tokens` perhaps unaligned."""
        return self._start_bytes

    @property
    def token_ids(self) -> TokenArray:
        """All of `.bin`, mapped, [num_tokens]."""
        return self._tokens

    def read(self, document: int, offset: int = 0, length: int | None = None) -> TokenArray:
        """Ids of `length` tokens (default: the rest) of `document`, starting at its token `offset`.

        Returns a read-only view [length] in the file's dtype; nothing is copied. Raises IndexError when the
        range leaves the document.
        """
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} must be in [0, {self.num_documents}) of {self._prefix}")
        available = int(self._lengths[document])
        if available < 0:
            raise DataError(f"{self._prefix} has document {document} of {available} tokens; {REMEDY}")
        if length is None:
            length = available - offset
        if offset < 0 or length < 0 or offset + length > available:
            raise IndexError(
                f"tokens [{offset}, {offset + length}) must lie in document {document} of {available} tokens"
            )
        start = int(self._start_bytes[document]) // self._dtype.itemsize + offset
        if not 0 <= start <= start + length <= len(self._tokens):
            raise DataError(f"{self._prefix} puts document {document} outside its .bin; {REMEDY}")
        return self._tokens[start : start + length]
