"""Losses of mixtures that were not trained, with intervals, from a stored fit.

Place in the flow: `predict_main` prints it, `picture` draws it. Invariant: a point outside what was measured has a
value only where extrapolation was asked for, and carries the reasons why it is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cptron.errors import DataError
from cptron.mixture.bootstrap import interval
from cptron.mixture.fit_file import LossFit, MixtureFit
from cptron.mixture.points import SAME, SCALARS, Array, Inputs

DISAGREEMENT = (
    "Published laws disagree: D-CPT (arXiv 2406.01375) puts the best share of the new domain at 0.73 to 0.92, CMR "
    "(arXiv 2407.17467) at 0.30 to 0.48. They are laws of losses only, fitted on models of up to 4B parameters. "
    "[second-hand: read about the papers, not verified in them]"
)
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Prediction:
    """One loss at one point."""

    loss: str
    shares: list[float]
    value: float
    low: float
    high: float
    outside: list[str]
    """Why this is extrapolation; empty within what was measured."""


def scalars_for(fit: MixtureFit, given: Mapping[str, float | None], *, extrapolate: bool) -> Inputs:
    """One point with the scalars asked for, its shares to be filled in. What has one value need not be given.

    Raises `DataError` for what must be given, for what is outside and not allowed, and for what no law contains.
    """
    contained = {name for one in fit.fits for name in one.law(fit.domains).scalars}
    values = {}
    for name in SCALARS:
        value, ends = given.get(name), fit.ranges.scalars.get(name)
        flag = f"--{name}"
        if ends is None or name not in contained:
            fixed = ends[0] if ends else math.nan
            if value is not None and not abs(value - fixed) <= SAME * abs(fixed):
                known = f"measured at {fixed:.4g} only" if ends else "recorded in no run"
                raise DataError(
                    f"{flag} {value:g} is asked for, and it was {known}: the fit knows nothing of other values; leave "
                    "it out, or fit runs that differ in it"
                )
            values[name] = fixed
            continue
        if value is None:
            raise DataError(f"{flag} must be given, the runs have {ends[0]:.4g} to {ends[1]:.4g}; add it")
        values[name] = value
    equal = np.full((1, len(fit.domains)), math.nan)
    point = Inputs(equal, **{name: np.array([value]) for name, value in values.items()})
    _refuse(fit.ranges.scalar_reasons(point, 0), extrapolate=extrapolate)
    return point


def parse_mixture(fit: MixtureFit, text: str) -> list[float]:
    """`old=0.05,new=0.95`. Raises `DataError`."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if name not in fit.domains or name in found or not 0 <= share <= 1:
            raise DataError(
                f"--shares {text}: {part!r} must be DOMAIN=SHARE with a share from 0 to 1 and each of "
                f"{', '.join(fit.domains)} once; correct it"
            )
        found[name] = share
    total = math.fsum(found.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"--shares {text} sum to {total:g}, must sum to 1; a domain left out has the share 0")
    return [found.get(name, 0.0) for name in fit.domains]


def predict(fit: MixtureFit, at: Inputs, mixture: Sequence[float], *, extrapolate: bool) -> list[Prediction]:
    """Every loss at one mixture. Raises `DataError` outside what was measured, unless `extrapolate`."""
    point = at.at(np.array([mixture], float))
    outside = fit.ranges.reasons(point, 0, tuple(fit.domains))
    _refuse(outside, extrapolate=extrapolate)
    found = []
    for loss in fit.own:
        one = fit.fit_of(loss, list(mixture))
        if one is None:
            raise DataError(
                f"the fit of {loss} has curves over the tokens at measured mixtures only, {list(mixture)} is none; "
                "use d-cpt for mixtures between"
            )
        value, low, high = values_with_interval(fit, one, point)
        if not np.isfinite(value).all():
            raise DataError(
                f"the law of {loss} has no value at {', '.join(f'{s:g}' for s in mixture)}; use d-cpt"
            )
        found.append(Prediction(loss, list(mixture), float(value[0]), float(low[0]), float(high[0]), outside))
    return found


def values_with_interval(fit: MixtureFit, one: LossFit, inputs: Inputs) -> tuple[Array, Array, Array]:
    """Values of the law and the ends of their intervals at many points."""
    law = one.law(fit.domains)
    draws = np.array([law.values(parameters, inputs) for parameters in one.drawn])
    low, high = interval(draws)
    return law.values(np.array(one.parameters), inputs), low, high


def _refuse(reasons: list[str], *, extrapolate: bool) -> None:
    if reasons and not extrapolate:
        raise DataError(f"{'; '.join(reasons)}: that is extrapolation; stay within, or name --extrapolate")
