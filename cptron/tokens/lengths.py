"""Statistics of documents' lengths, exact and in bounded memory.

Place in the flow: `cptron inspect` shows them. Invariant: quantiles are those of the sorted lengths, with linear
interpolation, as numpy gives them.
"""

from __future__ import annotations

import math

import numpy as np

from cptron.tokens.index_layout import Int64Array

_COUNTED = 1 << 20
"""Lengths below it have a counter each; longer documents are rare, their lengths are kept one by one."""


class LengthCounts:
    """How many documents have which length in tokens."""

    def __init__(self) -> None:
        self._counts = np.zeros(_COUNTED, np.int64)
        self._longer: list[Int64Array] = []

    def add(self, lengths: Int64Array) -> None:
        """Count documents of these lengths [documents]."""
        short = lengths[lengths < _COUNTED]
        found = np.bincount(short)
        self._counts[: len(found)] += found
        if len(short) < len(lengths):
            self._longer.append(lengths[lengths >= _COUNTED])

    def distinct(self) -> tuple[Int64Array, Int64Array]:
        """Lengths that occur, rising, and the number of documents of each: both [distinct lengths]."""
        short = np.flatnonzero(self._counts)
        longer, times = np.unique(np.concatenate([*self._longer, np.empty(0, np.int64)]), return_counts=True)
        return np.concatenate([short, longer]), np.concatenate([self._counts[short], times])


def quantile(lengths: Int64Array, counts: Int64Array, share: float) -> float:
    """Length that `share` of the documents are shorter than, from what `distinct` gives."""
    ends = np.cumsum(counts)
    place = (int(ends[-1]) - 1) * share
    ranks = (math.floor(place), math.ceil(place))
    low, high = (int(lengths[np.searchsorted(ends, rank, "right")]) for rank in ranks)
    return low + (high - low) * (place - int(place))


def share_longer(lengths: Int64Array, counts: Int64Array, limit: int) -> float:
    """Share of the documents that have more than `limit` tokens."""
    return int(counts[lengths > limit].sum()) / int(counts.sum())


def log2_bins(lengths: Int64Array, counts: Int64Array) -> list[dict[str, int]]:
    """Documents and tokens by length, in bins 1, 2-3, 4-7, ... up to the longest; lengths must be >= 1."""
    # frexp is exact for integers below 2^53: 4 -> (0.5, 3), so that 4-7 have the exponent 3.
    exponents = np.frexp(lengths.astype(np.float64))[1]
    bins = []
    for exponent in range(int(exponents.min()), int(exponents.max()) + 1):
        chosen = exponents == exponent
        bins.append(
            {
                "from": 1 << (exponent - 1),
                "to": (1 << exponent) - 1,
                "documents": int(counts[chosen].sum()),
                "tokens": int((counts[chosen] * lengths[chosen]).sum()),
            }
        )
    return bins
