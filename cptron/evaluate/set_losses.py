"""Losses of a validation set, window by window.

Place in the flow: made by `perplexity`, summed for the metrics, resampled for intervals. Invariant: the same numbers on
every rank; a window without a counted token is not among them.

Shapes: W windows of the set, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SetLosses:
    """Summed loss and counted tokens of each window."""

    nats_W: npt.NDArray[np.float64]
    tokens_W: npt.NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return int(self.tokens_W.sum())

    @property
    def loss_nats_per_token(self) -> float:
        """Mean over all predicted tokens."""
        return float(self.nats_W.sum() / max(1, self.tokens))
