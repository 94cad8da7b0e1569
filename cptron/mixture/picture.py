"""A page with the fit, its interval and the measured points.

Place in the flow: `--plot` of `cptron mixlaw`. Two domains: losses against the share of the new one; a law of the
tokens: the curves of all mixtures; more domains: predicted against measured. Invariant: a curve ends where measurement
ended.
"""

from __future__ import annotations

from html import escape

import numpy as np

from cptron.mixture.fit_file import KeptPoint, LossFit, MixtureFit
from cptron.mixture.points import SAME, SCALARS, Array, Inputs
from cptron.mixture.predict import DISAGREEMENT, values_with_interval
from cptron.mixture.recommend import Recommendation
from cptron.report.page import page
from cptron.report.svg import Series, line_chart

CURVE_POINTS = 401
"""More than the points that get a mark each."""


def fit_page(fit: MixtureFit, at: Inputs, found: Recommendation | None) -> str:
    """The page. `at` gives tokens and the other scalars where the shares are the axis."""
    if any(one.mixture for one in fit.fits):
        charts = [_over_tokens(fit, loss) for loss in fit.own]
    elif len(fit.domains) == 2:
        charts = [_over_shares(fit, one, at, color, found) for color, one in enumerate(fit.fits, start=1)]
    else:
        charts = [_against_measured(fit, one, color) for color, one in enumerate(fit.fits, start=1)]
    title = f"Mixture law {fit.law}"
    formula = "; ".join(dict.fromkeys(one.law(fit.domains).formula for one in fit.fits))
    about = f"{formula}. Areas: 95 % interval of the law, not of a single run."
    text = f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p><p>{escape(DISAGREEMENT)}</p></header>"
    return page(title, f'{text}<div class="charts">{"".join(charts)}</div>')


def _over_shares(fit: MixtureFit, one: LossFit, at: Inputs, color: int, found: Recommendation | None) -> str:
    axis = fit.domains.index(fit.own[fit.new][0]) if fit.new and fit.own.get(fit.new) else 1
    low, high = fit.ranges.shares[axis]
    share = np.linspace(low, high, CURVE_POINTS)
    shares = np.stack([1 - share, share] if axis else [share, 1 - share], axis=1)
    curve = _curve(f"{one.loss}, {fit.law}", share, values_with_interval(fit, one, at.at(shares)), color)
    near = [p for p in fit.points_of(one.loss) if _like(p, at)]
    dots = Series("measured", [(p.shares[axis], p.losses[one.loss]) for p in near], 0, dots=True)
    marks = [(found.shares[axis], "recommended")] if found and found.shares else []
    return line_chart(one.loss, f"share of {fit.domains[axis]}", "loss", [curve, dots], marks=marks)


def _over_tokens(fit: MixtureFit, loss: str) -> str:
    series = []
    for color, one in enumerate((one for one in fit.fits if one.loss == loss), start=1):
        points = [p for p in fit.points_of(loss) if np.allclose(p.shares, one.mixture, atol=1e-6)]
        tokens = np.linspace(min(p.tokens for p in points), max(p.tokens for p in points), CURVE_POINTS)
        unknown = np.full(CURVE_POINTS, np.nan)
        inputs = Inputs(np.tile(np.array(one.mixture), (CURVE_POINTS, 1)), tokens, unknown, unknown)
        label = ", ".join(f"{name} {share:.3g}" for name, share in zip(fit.domains, one.mixture, strict=True))
        series.append(_curve(label, tokens, values_with_interval(fit, one, inputs), color))
        series.append(Series("measured", [(p.tokens, p.losses[loss]) for p in points], color, dots=True))
    return line_chart(loss, "training tokens", "loss", series)


def _against_measured(fit: MixtureFit, one: LossFit, color: int) -> str:
    points = fit.points_of(one.loss)
    scalars = {name: np.array([p.scalar(name) for p in points], float) for name in SCALARS}
    inputs = Inputs(np.array([p.shares for p in points], float), **scalars)
    values = one.law(fit.domains).values(np.array(one.parameters), inputs)
    measured = np.array([p.losses[one.loss] for p in points])
    ends = [(float(measured.min()),) * 2, (float(measured.max()),) * 2]
    pairs = sorted(zip(measured.tolist(), values.tolist(), strict=True))
    dots = Series(one.loss, pairs, color, dots=True)
    return line_chart(
        one.loss,
        "measured loss",
        "fitted loss; on the line where equal",
        [Series("equal", ends, 0, faint=True), dots],
    )


def _curve(label: str, x: Array, ends: tuple[Array, Array, Array], color: int) -> Series:
    value, low, high = ends
    finite = np.isfinite(value) & np.isfinite(low) & np.isfinite(high)
    line = list(zip(x[finite].tolist(), value[finite].tolist(), strict=True))
    band = list(zip(x[finite].tolist(), low[finite].tolist(), high[finite].tolist(), strict=True))
    return Series(label, line, color, band=band)


def _like(point: KeptPoint, at: Inputs) -> bool:
    """Whether a point was measured with the scalars that the chart is for."""
    wanted = {name: float(getattr(at, name)[0]) for name in SCALARS}
    return all(
        np.isclose(point.scalar(name), value, rtol=2 * SAME)
        for name, value in wanted.items()
        if value == value
    )
