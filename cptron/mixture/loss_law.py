"""The law of a source's losses: L(n) = eps + beta * n^-alpha after n tokens.

Place in the flow: `ado` fits one to each source. Invariant: deterministic, numpy alone: a search over alpha, and for
each alpha the two other numbers by least squares, repeated with the weights of a Huber loss of log L.

Shapes: N losses, A exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HUBER_DELTA = 1e-3
"""Of the logarithm of the loss; larger deviations count linearly."""
MOST_ALPHA = 0.8
_ALPHAS = 41
_REFINEMENTS = 4
_REWEIGHTINGS = 30

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """L(n) = eps + beta * n^-alpha, n in tokens, L in nats per token."""

    alpha: float
    beta: float
    eps: float

    def loss(self, tokens: float) -> float:
        """After so many tokens."""
        return self.eps + self.beta * float(tokens**-self.alpha)

    def speed(self, tokens: float) -> float:
        """-dL/dn: what one more token lowers the loss by."""
        return self.alpha * (self.loss(tokens) - self.eps) / tokens


def fit_law(points: Sequence[tuple[int, float]]) -> Law:
    """The law nearest to (tokens, loss), all above 0: least sum of Huber losses of the deviations of log L."""
    tokens_N = np.array([tokens for tokens, _ in points], np.float64)
    losses_N = np.array([max(loss, 1e-9) for _, loss in points], np.float64)
    scale = float(tokens_N[-1])  # n^-alpha near 1: well conditioned
    low, high = 0.0, MOST_ALPHA
    for _ in range(_REFINEMENTS):
        alphas_A = np.linspace(low, high, _ALPHAS)
        beta_A, eps_A = _others(alphas_A, tokens_N / scale, losses_N)
        costs_A = _costs(alphas_A, beta_A, eps_A, tokens_N / scale, losses_N)
        best, step = int(costs_A.argmin()), (high - low) / (_ALPHAS - 1)
        found = Law(float(alphas_A[best]), float(beta_A[best] * scale ** alphas_A[best]), float(eps_A[best]))
        low, high = max(0.0, found.alpha - step), min(MOST_ALPHA, found.alpha + step)
    return found


def _others(alphas_A: Floats, n_N: Floats, losses_N: Floats) -> tuple[Floats, Floats]:
    """beta and eps for each alpha, none below 0."""
    x_AN = n_N[None] ** -alphas_A[:, None]
    weights_AN = np.ones_like(x_AN)
    for _ in range(_REWEIGHTINGS):
        beta_A, eps_A = _weighted_line(x_AN, losses_N, weights_AN / losses_N**2)
        rest_AN = np.abs(np.log(eps_A[:, None] + beta_A[:, None] * x_AN) - np.log(losses_N))
        weights_AN = HUBER_DELTA / np.maximum(rest_AN, HUBER_DELTA)
    return beta_A, eps_A


def _weighted_line(x_AN: Floats, y_N: Floats, weights_AN: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept of least squares, each at least 0."""
    total_A = weights_AN.sum(1)
    mean_x_A, mean_y_A = (weights_AN * x_AN).sum(1) / total_A, (weights_AN * y_N).sum(1) / total_A
    dx_AN = x_AN - mean_x_A[:, None]
    spread_A = (weights_AN * dx_AN**2).sum(1)
    slope_A = (weights_AN * dx_AN * (y_N - mean_y_A[:, None])).sum(1) / np.maximum(spread_A, 1e-300)
    slope_A = np.where(spread_A > 1e-24 * total_A, np.maximum(slope_A, 0.0), 0.0)
    through_0_A = (weights_AN * x_AN * y_N).sum(1) / (weights_AN * x_AN**2).sum(1)
    intercept_A = mean_y_A - slope_A * mean_x_A
    return np.where(intercept_A < 0, through_0_A, slope_A), np.maximum(intercept_A, 0.0)


def _costs(alphas_A: Floats, beta_A: Floats, eps_A: Floats, n_N: Floats, losses_N: Floats) -> Floats:
    x_AN = n_N[None] ** -alphas_A[:, None]
    rest_AN = np.abs(np.log(eps_A[:, None] + beta_A[:, None] * x_AN) - np.log(losses_N))
    small_AN = 0.5 * rest_AN**2
    cost_A: Floats = np.where(
        rest_AN <= HUBER_DELTA, small_AN, HUBER_DELTA * (rest_AN - 0.5 * HUBER_DELTA)
    ).sum(1)
    return cost_A
