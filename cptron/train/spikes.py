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
LOSS_FLOOR_OF_MEDIAN = 0.01
"""The deviation of losses counts as at least this part of their median: on a flat curve the last bits are no spike."""
LOSS_FLOOR_NATS = 1e-3
"""And as at least this, where the median is near 0."""
LOG_NORM_FLOOR = 0.05
"""The deviation of the logarithm of gradient norms counts as at least this. Their logarithm is compared because norms
are skewed: of log-normal ones with a deviation of 0.4, one in 600 is beyond 6 without it, with it one in a million."""
SMALLEST_NORM = 1e-12
"""Below this a norm counts as this, so that it has a logarithm."""


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
        losses, norms = self.loss[-guards.spike_window :], self.grad_norm[-guards.spike_window :]
        floor = max(LOSS_FLOOR_OF_MEDIAN * abs(statistics.median(losses)), LOSS_FLOOR_NATS)
        z_norm = robust_z(_log(grad_norm), [_log(norm) for norm in norms], LOG_NORM_FLOOR)
        return Scores(robust_z(loss, losses, floor), z_norm)


def robust_z(value: float, before: Sequence[float], floor: float) -> float:
    """(value - median) / (1.4826 * MAD) of the values before it, with at least `floor` as the divisor."""
    median = statistics.median(before)
    mad = statistics.median(abs(other - median) for other in before)
    return (value - median) / max(SIGMA_OF_MAD * mad, floor)


def _log(norm: float) -> float:
    return math.log(max(norm, SMALLEST_NORM))


def _is_finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)  # JSON reads NaN, too
