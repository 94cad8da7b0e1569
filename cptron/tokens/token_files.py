"""Token files as Megatron sees them: every sequence and every document, empty ones too, in bounded pieces.

Place in the flow: `merge`, `split` and `cptron inspect` walk through existing files with it; `indexed` is the
reader of training. Invariant: memory does not grow with the number of documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.errors import DataError
from cptron.tokens.index_layout import (
    REMEDY,
    Index,
    Int32Array,
    Int64Array,
    bin_path,
    file_bytes,
    idx_path,
    loss_mask_path,
)
from cptron.tokens.indexed import TokenArray
from cptron.tokens.manifest import Manifest, load_manifest, manifest_path

DOCUMENTS_AT_ONCE = 1 << 17
"""Documents of one piece: few enough that split sentences, dozens in each document, fit in memory as well."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive documents."""

    first: int
    """Number of the first one: its place in Megatron's document index."""
    sequence_lengths: Int32Array
    """Tokens of each of their sequences [sequences]."""
    sequence_counts: Int64Array
    """Sequences of each document [documents]; 0 for Megatron's empty documents."""
    lengths: Int64Array
    """Tokens of each document [documents]."""


class TokenFiles:
    """`PREFIX.bin`, `PREFIX.idx`, and the manifest and loss mask where there are any; sizes are checked."""

    def __init__(self, prefix: str | Path) -> None:
        """Open the files. Raises DataError naming the one that is missing or damaged."""
        self.prefix = str(prefix)
        index = self._index()
        self.dtype: np.dtype[np.integer[Any]] = index.dtype
        """Type of a token id in `.bin`."""
        self.num_tokens = index.check_sequences()
        self.num_sequences = len(index.lengths)
        self.num_documents = len(index.document_indices) - 1
        """Documents in Megatron's index, empty ones included."""
        if self.num_documents < 0:
            raise DataError(f"{index.path} has 0 document indices, at least 1 is needed; {REMEDY}")
        self._require_size(bin_path(prefix), self.num_tokens * self.dtype.itemsize)
        self.manifest: Manifest | None = load_manifest(prefix) if manifest_path(prefix).is_file() else None
        # The manifest says whether there is a mask; a file beside files without one would be of unknown origin.
        recorded = self.manifest is not None and "loss_mask" in self.manifest.files
        self.mask_path: Path | None = loss_mask_path(prefix) if recorded else None
        if self.mask_path:
            self._require_size(self.mask_path, self.num_tokens)

    def _index(self) -> Index:
        """Opened when it is needed: a merge has thousands of inputs, and each mapped file holds a descriptor."""
        return Index(idx_path(self.prefix))

    def _require_size(self, path: Path, expected: int) -> None:
        actual = file_bytes(path)
        if actual != expected:
            raise DataError(f"{path} has {actual} bytes, its index requires {expected}; {REMEDY}")

    def pieces(self) -> Iterator[Piece]:
        """All documents, in order. Raises DataError when their indices do not cover the sequences."""
        index = self._index()
        bounds = index.document_indices
        self._require_cover(int(bounds[0]) == 0 and int(bounds[-1]) == self.num_sequences)
        for first in range(0, self.num_documents, DOCUMENTS_AT_ONCE):
            part = bounds[first : first + DOCUMENTS_AT_ONCE + 1]
            counts = np.diff(part)
            # A fall would be hidden by a later rise, and a value past the end leaves the array.
            # The values are compared, not their differences, which may be beyond 64 bits.
            self._require_cover(bool((part[1:] >= part[:-1]).all()) and int(part[-1]) <= self.num_sequences)
            lengths = index.lengths[part[0] : part[-1]]
            ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[part - part[0]]
            yield Piece(first, lengths, counts, np.diff(ends))

    def document_span(self, number: int) -> tuple[int, int]:
        """First token of document `number` in `.bin`, and its length in tokens. Raises DataError when there is
        none."""
        if not 0 <= number < self.num_documents:
            raise DataError(
                f"document {number} of {self.prefix} must be in 0..{self.num_documents - 1}; give one of these"
            )
        index = self._index()
        first, stop = (int(bound) for bound in index.document_indices[number : number + 2])
        self._require_cover(0 <= first <= stop <= self.num_sequences)
        if first == stop:
            return 0, 0
        lengths = index.lengths[first:stop]
        return int(index.pointers[first]) // self.dtype.itemsize, int(lengths.sum(dtype=np.int64))

    def tokens(self, start: int, stop: int) -> TokenArray:
        """Ids of tokens `start` to `stop` of `.bin`, [stop - start], in the file's dtype."""
        return np.fromfile(
            bin_path(self.prefix), self.dtype, stop - start, offset=start * self.dtype.itemsize
        )

    def mask(self, start: int, stop: int) -> npt.NDArray[np.uint8] | None:
        """Loss mask of the same tokens, [stop - start], 1 where they are learned; None when there is none."""
        return np.fromfile(self.mask_path, np.uint8, stop - start, offset=start) if self.mask_path else None

    def _require_cover(self, holds: bool) -> None:
        if not holds:
            raise DataError(
                f"{idx_path(self.prefix)} has document indices that must rise from 0 to {self.num_sequences} "
                f"sequences; {REMEDY}"
            )
