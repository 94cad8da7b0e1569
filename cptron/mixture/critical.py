"""The critical mixture ratio of the CMR law: the largest share of new data that keeps the old loss in bounds.

Place in the flow: `predict` on a fit of `cmr-tokens`. Each measured mixture has a curve of the old loss over tokens; at
T tokens the curves are joined by straight lines over the share R, and the critical ratio is where they leave the bound.
Over the measured T these ratios are fitted by R_CMR(T) = α T^s + β, as the paper does. Invariant: a ratio is found
between two measured mixtures, or at the largest one, never beyond.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cptron.errors import DataError
from cptron.mixture.bootstrap import interval
from cptron.mixture.fit_file import LossFit, MixtureFit
from cptron.mixture.laws.power import PowerLaw
from cptron.mixture.points import Array, Inputs

TOKEN_COUNTS = 24
"""At which the ratio is found for the fit over T, evenly in the logarithm."""
MOST_DRAWS = 200


@dataclass(frozen=True, slots=True)
class CriticalRatio:
    """Share of new data, and its power law over the tokens."""

    ratio: float
    """NaN where no measured mixture is within the bound."""
    low: float
    high: float
    none_share: float
    """Part of the draws under which no measured mixture is."""
    at_edge: bool
    """The largest measured share is within the bound."""
    law: list[float]
    """beta, alpha, s of R_CMR(T); empty where fewer than five T have a ratio between measured mixtures."""
    law_rmse: float
    """Of that fit, as a share; NaN where there is none."""
    extrapolated: bool
    """The ratio is that of R_CMR(T), because T is beyond the measured range."""


def critical_ratio(fit: MixtureFit, tokens: float, limit: float) -> CriticalRatio:
    """At `tokens`; outside the measured range by the power law. Raises `DataError` where that cannot be fitted."""
    curves = _curves(fit)
    ratios = np.array([ratio for ratio, _ in curves])
    low, high = fit.ranges.scalars["tokens"]
    counts = np.geomspace(low, high, TOKEN_COUNTS)
    here = np.array([tokens])
    inside = low <= tokens <= high

    def found(pick: int | None) -> tuple[float, Array]:
        """Ratio and law under the fit, or under one draw."""
        losses = [_values(one, pick, counts if not inside else here) for _, one in curves]
        by_count = np.array([_crossing(ratios, column, limit) for column in np.array(losses).T])
        if inside:
            return float(by_count[0]), np.array([])
        law = _law_over_tokens(counts, by_count, ratios)
        return (float("nan") if not len(law) else float(_power(law, here)[0])), law

    ratio, law = found(None)
    if inside:
        law = _law_over_tokens(counts, _crossings(curves, counts, ratios, limit), ratios)
    elif not len(law):
        raise DataError(
            f"tokens {tokens:.4g} is outside {low:.4g} to {high:.4g}, and the critical ratio lies between measured "
            "mixtures at too few token counts to extrapolate it; measure more"
        )
    draws = np.array([found(pick)[0] for pick in range(min(MOST_DRAWS, len(curves[0][1].draws)))])
    known = np.where(np.isnan(draws), ratios.min(), draws)
    ends = interval(known[:, None])
    return CriticalRatio(
        ratio=ratio,
        low=float(ends[0][0]),
        high=float(ends[1][0]),
        none_share=float(np.isnan(draws).mean()),
        at_edge=bool(inside and ratio >= ratios.max()),
        law=law.tolist(),
        law_rmse=_rmse(law, counts, _crossings(curves, counts, ratios, limit), ratios),
        extrapolated=not inside,
    )


def _curves(fit: MixtureFit) -> list[tuple[float, LossFit]]:
    """Share of new data and curve of the old loss, by share. Raises DataError without two of them."""
    own = [fit.domains.index(name) for name in fit.own.get(fit.new or "", [])]
    curves = sorted(
        ((sum(one.mixture[i] for i in own), one) for one in fit.fits if one.loss == fit.old),
        key=lambda c: c[0],
    )
    if not own or len({ratio for ratio, _ in curves}) < 2 or len(curves) != len({r for r, _ in curves}):
        raise DataError(
            f"the fit has old={fit.old}, new={fit.new} and {len(curves)} curves of the old loss; a critical ratio "
            "needs two or more, each at another share of the new domain: name --new NAME=DOMAIN to cptron mixlaw fit"
        )
    return curves


def _values(one: LossFit, pick: int | None, tokens: Array) -> Array:
    law = one.law([str(i) for i in range(len(one.mixture))])
    unknown = np.full(len(tokens), np.nan)
    inputs = Inputs(np.tile(np.array(one.mixture), (len(tokens), 1)), tokens, unknown, unknown)
    return law.values(np.array(one.parameters if pick is None else one.draws[pick]), inputs)


def _crossings(curves: list[tuple[float, LossFit]], counts: Array, ratios: Array, limit: float) -> Array:
    losses = np.array([_values(one, None, counts) for _, one in curves])
    return np.array([_crossing(ratios, column, limit) for column in losses.T])


def _crossing(ratios: Array, losses: Array, limit: float) -> float:
    """Largest ratio up to which every loss is within the limit; NaN where the first is not."""
    beyond = np.flatnonzero(~(losses <= limit))
    if not len(beyond):
        return float(ratios[-1])
    first = int(beyond[0])
    if first == 0:
        return float("nan")
    before, after = losses[first - 1], losses[first]
    part = (limit - before) / (after - before) if np.isfinite(after) else 0.0
    return float(ratios[first - 1] + part * (ratios[first] - ratios[first - 1]))


def _law_over_tokens(counts: Array, by_count: Array, ratios: Array) -> Array:
    """R_CMR(T), fitted where the ratio lies between measured mixtures; empty where that is too few times."""
    law = PowerLaw(())
    between = _between(by_count, ratios)
    if between.sum() < len(law.parameters) + 2:
        return np.array([])
    unknown = np.full(int(between.sum()), np.nan)
    inputs = Inputs(np.empty((len(unknown), 0)), counts[between], unknown, unknown)
    return law.fit(inputs, by_count[between], np.random.default_rng(0))


def _between(by_count: Array, ratios: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(by_count) & (by_count < ratios.max()))


def _rmse(law: Array, counts: Array, by_count: Array, ratios: Array) -> float:
    between = _between(by_count, ratios)
    if not len(law):
        return float("nan")
    return float(np.sqrt(np.mean((_power(law, counts[between]) - by_count[between]) ** 2)))


def _power(law: Array, tokens: Array) -> Array:
    unknown = np.full(len(tokens), np.nan)
    return PowerLaw(()).values(law, Inputs(np.empty((len(tokens), 0)), tokens, unknown, unknown))
