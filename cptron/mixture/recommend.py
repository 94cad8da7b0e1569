"""The mixture of the lowest new loss among those that keep the old loss within a bound.

Place in the flow: `fit` and `predict` print it. Two domains: a fine grid between the least and the largest measured
share. More: mixtures simulated between the measured ones; the best of them, or the mean of the best, as RegMix chooses,
where the law finds that better. The interval comes from the same search under every drawn set of parameters. Invariant:
nothing outside the measured mixtures is recommended, unless extrapolation was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cptron.errors import DataError
from cptron.mixture.bootstrap import interval
from cptron.mixture.bound import Bound
from cptron.mixture.fit_file import MixtureFit
from cptron.mixture.laws.law import Law
from cptron.mixture.points import Array, Inputs

GRID = 4001
SIMULATED = 20_000
BEST = 26
"""Simulated mixtures whose mean is recommended: the same part of all as RegMix's 128 of 100,000."""
NEIGHBOURS = 4
"""Measured mixtures between which one is simulated."""
CONCENTRATION = 0.4
"""Of their weights: below 1 most simulated mixtures are close to a measured one, where the best ones often are."""
MOST_DRAWS = 100
"""Searched where there are more than two domains."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Shares by domain, and how sure they are."""

    bound: str
    limit: float
    """The largest old loss allowed."""
    shares: list[float]
    """Empty: no mixture keeps the bound."""
    low: list[float]
    high: list[float]
    none_share: float
    """Part of the draws under which no mixture keeps the bound."""
    at_edge: bool
    """Every mixture up to the largest measured share of new data keeps it."""
    closest: list[float]
    """The mixture of the lowest old loss."""


def recommend(
    fit: MixtureFit, at: Inputs, bound: Bound, baseline: float, *, extrapolate: bool
) -> Recommendation:
    """Search under the fitted parameters and under each draw. `at` gives tokens and the other scalars. Raises
    `DataError` where the fit has no old or no new loss."""
    old_law, old, old_draws = _of(fit, fit.old)
    new_law, new, new_draws = _of(fit, fit.new)
    limit = bound.limit(baseline)
    inputs = at.at(_candidates(fit, extrapolate=extrapolate))

    def search(old_parameters: Array, new_parameters: Array) -> Array | None:
        losses = new_law.values(new_parameters, inputs)
        allowed = np.flatnonzero((old_law.values(old_parameters, inputs) <= limit) & np.isfinite(losses))
        if not len(allowed):
            return None
        best = allowed[np.argsort(losses[allowed], kind="stable")]
        mean = at.at(inputs.shares[best[:BEST]].mean(axis=0, keepdims=True))
        within = old_law.values(old_parameters, mean)[0] <= limit
        if within and new_law.values(new_parameters, mean)[0] < losses[best[0]]:
            return np.asarray(mean.shares[0])
        return np.asarray(inputs.shares[best[0]])

    found = search(old, new)
    count = len(old_draws) if len(fit.domains) == 2 else MOST_DRAWS
    draws = [search(*pair) for pair in zip(old_draws[:count], new_draws[:count], strict=True)]
    closest = inputs.shares[int(np.argmin(old_law.values(old, inputs)))]
    # without any mixture within the bound, the most careful one stands in the interval
    low, high = interval(np.array([closest if draw is None else draw for draw in draws]))
    return Recommendation(
        bound=str(bound),
        limit=limit,
        shares=[] if found is None else found.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        none_share=sum(draw is None for draw in draws) / len(draws),
        at_edge=bool((old_law.values(old, inputs) <= limit).all()),
        closest=closest.tolist(),
    )


def _of(fit: MixtureFit, loss: str | None) -> tuple[Law, Array, Array]:
    found = fit.fit_of(loss) if loss is not None else None
    if found is None:
        raise DataError(
            f"the fit has old={fit.old} and new={fit.new}, a recommendation needs both; name --old and --new to "
            "cptron mixlaw fit"
        )
    return found.law(fit.domains), np.array(found.parameters), found.drawn


def _candidates(fit: MixtureFit, *, extrapolate: bool) -> Array:
    measured = np.unique(np.array([point.shares for point in fit.points], float), axis=0)
    if len(fit.domains) == 2:
        low, high = (0.0, 1.0) if extrapolate else fit.ranges.shares[0]
        first = np.linspace(low, high, GRID)
        return np.stack([first, 1 - first], axis=1)
    rng = np.random.default_rng(fit.seed)
    chosen = rng.integers(len(measured), size=(SIMULATED, min(NEIGHBOURS, len(measured))))
    weights = rng.dirichlet(np.full(chosen.shape[1], CONCENTRATION), size=SIMULATED)
    return np.concatenate([measured, np.einsum("nk,nkd->nd", weights, measured[chosen])])
