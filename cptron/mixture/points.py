"""Measured runs, as the laws see them: arrays of what was varied, and the losses that came of it.

Place in the flow: `read_points` and `read_runs` make a `Table`, `fit` takes it apart. Invariant: the shares of every
point sum to one; what was not recorded is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SCALARS = ("tokens", "params", "learnability")
"""What may be varied beside the shares."""
SAME = 0.01
"""Relative spread up to which a scalar counts as one value: runs end at a whole batch, not at a given token."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of one run."""

    shares: tuple[float, ...]
    """Of the training tokens, by domain; they sum to 1."""
    losses: dict[str, float]
    """Loss by validation set, in nats per token or per byte, as the user measures."""
    tokens: float
    """Trained on, all domains together."""
    params: float = float("nan")
    """Parameters of the model."""
    learnability: float = float("nan")
    """K of the cross-domain D-CPT law."""
    run: str = ""
    """Points of one run share its noise."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Losses of the model before training."""

    params: float
    losses: dict[str, float]


@dataclass(frozen=True, slots=True)
class Table:
    """All points, and the models they start from."""

    domains: tuple[str, ...]
    points: tuple[Point, ...]
    baselines: tuple[Baseline, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What the reader left out or took for granted."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a law is a function of, for n points and D domains."""

    shares: Array
    """n x D."""
    tokens: Array
    params: Array
    learnability: Array

    @staticmethod
    def of(points: Sequence[Point]) -> Inputs:
        """The inputs of these points."""
        columns = {name: np.array([getattr(point, name) for point in points], float) for name in SCALARS}
        return Inputs(np.array([point.shares for point in points], float), **columns)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Any) -> Inputs:
        """Those at `index`, a mask or positions."""
        return Inputs(self.shares[index], self.tokens[index], self.params[index], self.learnability[index])

    def at(self, shares: Array) -> Inputs:
        """The mixtures `shares`, with the scalars of the first point."""
        scalars = {name: np.full(len(shares), getattr(self, name)[0]) for name in SCALARS}
        return Inputs(shares, **scalars)


def varies(values: Array) -> bool:
    """Whether a scalar has more than one value."""
    known = values[np.isfinite(values)]
    return len(known) > 0 and bool(known.max() - known.min() > SAME * abs(known.max()))
