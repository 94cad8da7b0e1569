"""Ridge regression on the shares, as RegMix (arXiv 2407.01492) regresses losses of many small runs on their mixtures.

Place in the flow: `registry` makes it. RegMix fits LightGBM or a linear model; here each share x gives the features
x, √x and log(x + 1e-3). Invariant: the intercept is not penalised; the penalty is the one of the least exact
leave-one-out error, found again at every fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cptron.mixture.points import Array, Inputs

LOG_OFFSET = 1e-3
PENALTIES = np.logspace(-6, 2, 25)
"""Tried, as multiples of the number of points; features have unit variance."""


@dataclass(frozen=True, slots=True)
class RidgeLaw:
    """intercept + features . weights."""

    domains: tuple[str, ...]

    @property
    def formula(self) -> str:
        """In words."""
        return "b + Σ (u_j x_j + v_j √x_j + w_j log(x_j + 0.001)), x: shares; ridge"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Intercept, then three weights a domain."""
        kinds = ("u", "v", "w")
        return ("b", *(f"{kind}/{name}" for kind in kinds for name in self.domains))

    @property
    def scalars(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def values(self, parameters: Array, inputs: Inputs) -> Array:
        """The law at every point."""
        return np.asarray(parameters[0] + features(inputs.shares) @ parameters[1:])

    def fit(
        self, inputs: Inputs, losses: Array, rng: np.random.Generator, start: Array | None = None
    ) -> Array:
        """The closed form; nothing is searched, so `rng` and `start` play no part."""
        problem = _Problem(features(inputs.shares), losses)
        return problem.parameters(problem.best_penalty())

    def num_effective(self, inputs: Inputs, losses: Array) -> float:
        """Trace of the matrix that makes fitted values of losses."""
        problem = _Problem(features(inputs.shares), losses)
        return 1.0 + float(problem.shrinkage(problem.best_penalty()).sum())


def features(shares: Array) -> Array:
    """n x 3D."""
    return np.concatenate([shares, np.sqrt(shares), np.log(shares + LOG_OFFSET)], axis=1)


class _Problem:
    """Features brought to mean 0 and variance 1, and taken apart once for all penalties."""

    def __init__(self, raw: Array, losses: Array) -> None:
        self._center, spread = raw.mean(axis=0), raw.std(axis=0)
        self._scale = np.where(spread > 1e-12, spread, np.inf)  # a constant feature gets no weight
        self._mean = losses.mean()
        self._residual = losses - self._mean
        left, self._singular, self._right = np.linalg.svd(
            (raw - self._center) / self._scale, full_matrices=False
        )
        self._left, self._projected = left, left.T @ self._residual

    def shrinkage(self, penalty: float) -> Array:
        """What is left of each singular direction."""
        squares = self._singular**2
        return np.asarray(squares / (squares + penalty * len(self._residual)))

    def best_penalty(self) -> float:
        """Of the least sum of squared leave-one-out errors, each residual / (1 - leverage)."""
        errors = [self._left_out(penalty) for penalty in PENALTIES]
        return float(PENALTIES[int(np.argmin(errors))])

    def _left_out(self, penalty: float) -> float:
        kept = self.shrinkage(penalty)
        leverage = 1 / len(self._residual) + np.sum(self._left**2 * kept, axis=1)
        remaining = self._residual - self._left @ (kept * self._projected)
        return float(np.sum((remaining / np.maximum(1 - leverage, 1e-9)) ** 2))

    def parameters(self, penalty: float) -> Array:
        """Intercept and weights of the features as they are."""
        kept = self.shrinkage(penalty)
        inverse = np.divide(kept, self._singular, out=np.zeros_like(kept), where=self._singular > 1e-12)
        weights = self._right.T @ (inverse * self._projected) / self._scale
        return np.concatenate([[self._mean - self._center @ weights], weights])
