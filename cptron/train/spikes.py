"""Spikes: values of loss or gradient norm far above those before them.

Place in the flow: `guards` asks between the gradient norm of a batch and its update. Invariant: a pure function of the
values before, which are part of every checkpoint; so a resume finds the same spikes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from cptron.config.schema import GuardsConfig

SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
FLOOR_OF_MEDIAN = 0.01
"""A deviation counts as at least this part of the median: on a flat curve the last bits are no spike."""
FLOOR = 1e-3
"""And as at least this, where the median is near 0."""


class Scores(NamedTuple):
    """How far above the values before it each quantity is, in robust standard deviations."""

    loss: float
    grad_norm: float

    @property
    def highest(self) -> float:
        """What is compared with `guards.spike_z`."""
        return max(self.loss, self.grad_norm)


NOT_KNOWN = Scores(0.0, 0.0)
"""Before there is enough history."""


@dataclass
class SpikeHistory:
    """Loss and gradient norm of the last batches that were trained on, oldest first."""

    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` returned. Raises ValueError on anything else."""
        if not isinstance(saved, Mapping) or set(saved) != {"loss", "grad_norm"}:
            raise ValueError("must hold loss and grad_norm")
        loss, grad_norm = saved["loss"], saved["grad_norm"]
        for values in (loss, grad_norm):
            if not isinstance(values, list) or not all(_is_finite(value) for value in values):
                raise ValueError("must hold lists of finite numbers")
        if len(loss) != len(grad_norm):
            raise ValueError("must hold as many losses as gradient norms")
        return cls(list(loss), list(grad_norm))

    def to_dict(self) -> dict[str, list[float]]:
        """JSON form."""
        return {"loss": list(self.loss), "grad_norm": list(self.grad_norm)}

    def learn(self, loss: float, grad_norm: float, window: int) -> None:
        """Enter a batch that was trained on, and forget what is older than the last `window`."""
        assert math.isfinite(loss) and math.isfinite(grad_norm), "such a batch is never trained on"
        self.loss = [*self.loss, loss][-window:]
        self.grad_norm = [*self.grad_norm, grad_norm][-window:]

    def scores(self, loss: float, grad_norm: float, guards: GuardsConfig) -> Scores:
        """Of the next batch; zeros while fewer than `guards.spike_min_history` are known."""
        if len(self.loss) < guards.spike_min_history:
            return NOT_KNOWN
        window = guards.spike_window
        return Scores(robust_z(loss, self.loss[-window:]), robust_z(grad_norm, self.grad_norm[-window:]))


def robust_z(value: float, before: Sequence[float]) -> float:
    """(value - median) / (1.4826 * MAD), with the floors above under the deviation."""
    median = statistics.median(before)
    mad = statistics.median(abs(other - median) for other in before)
    return (value - median) / max(SIGMA_OF_MAD * mad, FLOOR_OF_MEDIAN * abs(median), FLOOR)


def _is_finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)  # JSON reads NaN, too
