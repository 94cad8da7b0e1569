"""How bands and rows decide which pairs become candidates: the S-curve, and the choice that a threshold leads to.

Place in the flow: `scheme` takes its bands and rows from here. Invariant: pure functions of numbers.

Two documents with Jaccard index j agree in one row with probability j, in a band of r rows with j^r, and in one of b
bands at least with 1 - (1 - j^r)^b.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

_POINTS = 1001


def candidate_probability(jaccard: ArrayLike, bands: int, rows: int) -> NDArray[np.float64]:
    """Of becoming candidates, for pairs of these Jaccard indices."""
    return np.asarray(1.0 - (1.0 - np.asarray(jaccard, np.float64) ** rows) ** bands)


@cache
def best_bands(threshold: float, permutations: int, false_positive_weight: float) -> tuple[int, int]:
    """Bands and rows with at most `permutations` in all for which the weighted sum of two areas is smallest: under the
    S-curve below `threshold` (pairs compared in vain) and over it above (pairs missed), as datasketch chooses. The
    weight of the other area is 1 - `false_positive_weight`."""
    below, above = np.linspace(0.0, threshold, _POINTS), np.linspace(threshold, 1.0, _POINTS)
    best: tuple[float, int, int] | None = None
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            vain = _area(candidate_probability(below, bands, rows), threshold)
            missed = _area(1.0 - candidate_probability(above, bands, rows), 1.0 - threshold)
            error = false_positive_weight * vain + (1.0 - false_positive_weight) * missed
            if best is None or error < best[0]:
                best = error, bands, rows
    assert best is not None, "permutations must be at least 1"
    return best[1], best[2]


def _area(values: NDArray[np.float64], width: float) -> float:
    """Under a curve of evenly spaced values, by trapezoids."""
    return float(values.sum() - (values[0] + values[-1]) / 2.0) * width / (len(values) - 1)
