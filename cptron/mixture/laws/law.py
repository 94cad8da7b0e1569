"""What a mixture law is: a formula with parameters that can be fitted and evaluated.

Place in the flow: below `fit`, `bootstrap` and `recommend`, which know no formula. Invariant: a law is a pure function
of its settings, which are plain JSON; the parameters are a flat array in the order of `parameters`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cptron.mixture.points import Array, Inputs


class Law(Protocol):
    """A formula for one loss."""

    @property
    def formula(self) -> str:
        """As people write it, with the meaning of its letters."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""

    @property
    def scalars(self) -> frozenset[str]:
        """Of `points.SCALARS`, those that the formula contains."""

    def values(self, parameters: Array, inputs: Inputs) -> Array:
        """The loss at every point; infinite where the formula has no value."""

    def fit(
        self, inputs: Inputs, losses: Array, rng: np.random.Generator, start: Array | None = None
    ) -> Array:
        """Parameters of the least sum of squares. `start` is an earlier fit of like data, to begin from."""

    def num_effective(self, inputs: Inputs, losses: Array) -> float:
        """Degrees of freedom that a fit uses up: the number of parameters, or less for a penalised fit."""
