"""Which source each sample comes from.

Place in the flow: between the sources and `stream`. Invariant: a pure function of the shares and of how many
samples each source gave since the shares were last set; at every moment each source is within one sample of
its share (Tijdeman's algorithm, csrc/blend.h).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cptron.data import kernels
from cptron.errors import CheckpointError, ConfigError

WEIGHT_SUM = 2**48
"""Shares become integers of this sum; so the order is the same on every platform."""
MOST_SOURCES = 16384


def integer_weights(shares: Sequence[float]) -> list[int]:
    """Positive integers that sum to WEIGHT_SUM, in the proportion of `shares` (largest remainders; at least
    1). Raises ConfigError on shares that are not positive with a finite sum, or on too many."""
    if not shares or not 0 < min(shares) <= sum(shares) < math.inf:
        raise ConfigError(
            f"token shares must all be positive with a finite sum, got {list(shares)[:8]}; leave out an unused source"
        )
    if len(shares) > MOST_SOURCES:
        raise ConfigError(f"{len(shares)} sources must be at most {MOST_SOURCES}; merge some of them")
    total = math.fsum(shares)
    exact = [share / total * WEIGHT_SUM for share in shares]
    weights = [max(1, math.floor(value)) for value in exact]
    missing = WEIGHT_SUM - sum(weights)
    by_remainder = sorted(range(len(shares)), key=lambda i: (math.floor(exact[i]) - exact[i], i))
    for i in by_remainder[: max(0, missing)]:
        weights[i] += 1
    weights[max(range(len(shares)), key=lambda i: (weights[i], -i))] += WEIGHT_SUM - sum(weights)
    return weights


class Blend:
    """Shares of the samples, and who comes next. Draws nothing in advance."""

    def __init__(self, sample_shares: Sequence[float]) -> None:
        self.weights = integer_weights(sample_shares)
        self._kernel = kernels.Blend(self.weights, [0] * len(self.weights))

    def draw(
        self, counts: Sequence[int], num_samples: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Source of each of the next `num_samples` samples, and which sample of its source it is, when `counts`
        samples of each source were drawn before. Raises CheckpointError when these shares never lead there."""
        try:
            if self._kernel.counts != list(counts):
                self._kernel = kernels.Blend(self.weights, list(counts))
            sources, numbers = self._kernel.draw(num_samples)
        except (RuntimeError, TypeError) as error:  # TypeError: beyond 64 bits
            raise CheckpointError(
                f"the ledger has drawn {list(counts)[:8]} samples of its sources, which their shares do not allow "
                f"({str(error).splitlines()[0]}); use another checkpoint"
            ) from None
        return sources, numbers
