"""Which source each sample comes from.

Place in the flow: between the sources and the loader. Invariant: a pure function of the shares and of how
many samples each source gave since the shares were last set; at any moment no source is more than a few
samples from its share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cptron.data.kernels import draw_blend
from cptron.data.source import TokenSource
from cptron.errors import ConfigError

WEIGHT_SUM = 2**32
"""Shares become integers of about this sum; so the order is the same on every platform."""


class Blend:
    """Sources and their shares of the training tokens. All samples have the same length: token share is
    sample share."""

    def __init__(self, sources: Sequence[TokenSource], token_shares: Sequence[float]) -> None:
        if not sources or not 0 < min(token_shares) <= sum(token_shares) < math.inf:
            raise ConfigError(
                f"token shares must all be positive with a finite sum, got {list(token_shares)}; leave out an unused "
                "source"
            )
        self.sources = list(sources)
        total = sum(token_shares)
        self.shares = [share / total for share in token_shares]
        self._weights = np.array(
            [max(1, round(share * WEIGHT_SUM)) for share in self.shares], dtype=np.uint64
        )

    def draw(self, counts: Sequence[int], num_samples: int) -> tuple[npt.NDArray[np.int32], list[int]]:
        """Source of each of the next `num_samples` samples, and the counts after them."""
        advanced = np.array(counts, dtype=np.int64)
        chosen: npt.NDArray[np.int32] = draw_blend(self._weights, advanced, num_samples)
        return chosen, advanced.tolist()
