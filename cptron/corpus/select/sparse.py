"""Counts by bucket of many documents, as three arrays.

Place in the flow: what DSIR and TF-IDF keep of a shard between their passes. Invariant: rows are in the order of the
documents; a row may be empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.select.ngrams import Counts


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Row i has `buckets[starts[i]:starts[i + 1]]`, with `counts` beside it."""

    starts: NDArray[np.int64]
    buckets: NDArray[np.uint16]
    counts: NDArray[np.uint32]

    @classmethod
    def of(cls, rows: Iterable[Counts]) -> SparseRows:
        """From counts of each document."""
        listed = list(rows)
        starts = np.zeros(len(listed) + 1, np.int64)
        np.cumsum([len(buckets) for buckets, _ in listed], out=starts[1:])
        empty: Counts = (np.zeros(0, np.uint16), np.zeros(0, np.uint32))
        buckets, counts = zip(*(listed or [empty]), strict=True)
        return cls(starts, np.concatenate(buckets), np.concatenate(counts))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> SparseRows:
        """From what `as_arrays` gave."""
        return cls(arrays["starts"], arrays["buckets"], arrays["counts"])

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """For a file."""
        return {"starts": self.starts, "buckets": self.buckets, "counts": self.counts}

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def total(self, buckets: int, wanted: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Counts by bucket, over all rows or those wanted."""
        counts = self.counts if wanted is None else self.counts * wanted[self.rows]
        return np.bincount(self.buckets, weights=counts, minlength=buckets).astype(np.int64)

    def row_sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum of one value an entry, over each row; in integers where they are."""
        sums = np.zeros(len(self), values.dtype)
        filled = np.flatnonzero(np.diff(self.starts))
        if len(filled):
            sums[filled] = np.add.reduceat(values, self.starts[filled])
        return sums
