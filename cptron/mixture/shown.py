"""What `cptron mixlaw` prints.

Place in the flow: `fit_main` and `predict_main` print these lines. Invariant: a value that is extrapolated says so on
its own line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cptron.mixture.bootstrap import interval
from cptron.mixture.critical import CriticalRatio
from cptron.mixture.fit_file import LossFit, MixtureFit
from cptron.mixture.left_out import LeftOut
from cptron.mixture.left_out import shown as mixture_text
from cptron.mixture.predict import Prediction
from cptron.mixture.recommend import Recommendation
from cptron.report.console import table

EXTRAPOLATED = "EXTRAPOLATED"


def fit_lines(fit: MixtureFit, one: LossFit) -> list[str]:
    """A loss: parameters with intervals, and errors."""
    law = one.law(fit.domains)
    low, high = interval(one.drawn)
    rows = [
        [name, f"{value:.5g}", f"{least:.5g}", f"{largest:.5g}"]
        for name, value, least, largest in zip(law.parameters, one.parameters, low, high, strict=True)
    ]
    where = f" at {mixture_text(np.array(one.mixture), tuple(fit.domains))}" if one.mixture else ""
    return [
        f"{one.loss}{where}: {law.formula}; {one.num_points} points, {len(law.parameters)} parameters",
        *(f"  {line}" for line in table(["parameter", "value", "95% low", "95% high"], rows).splitlines()),
        f"  rmse {one.rmse:.4f} nats; {left_out_text(one.left_out)}",
    ]


def left_out_text(found: LeftOut) -> str:
    """Errors of prediction in words."""
    parts = []
    if found.inside_mean is not None:
        parts.append(f"left out: mean {found.inside_mean:.4f}, largest {found.inside_largest:.4f} nats")
    if found.edge_largest is not None:
        parts.append(
            f"left out at an edge (extrapolated): largest {found.edge_largest:.4f} nats at {found.edge_at}"
        )
    if found.skipped:
        parts.append(f"{found.skipped} mixtures cannot be left out, too few remain")
    return "; ".join(parts)


def recommendation_lines(
    fit: MixtureFit, found: Recommendation, extrapolated: Sequence[str] = ()
) -> list[str]:
    """The recommended mixture, or why there is none."""
    tail = f"  {EXTRAPOLATED}: {'; '.join(extrapolated)}" if extrapolated else ""
    what = f"{fit.old} may rise by {found.bound}, to {found.limit:.4f} nats"
    if not found.shares:
        closest = mixture_text(np.array(found.closest), tuple(fit.domains))
        return [
            f"recommended: none, {what}, and no mixture within the range keeps that; closest is {closest}{tail}"
        ]
    lines = [
        f"recommended: {name}={share:.4f}  95 % interval {low:.4f} to {high:.4f}  ({what}){tail}"
        for name, share, low, high in zip(fit.domains, found.shares, found.low, found.high, strict=True)
    ]
    if found.at_edge:
        lines.append(
            f"recommended: every mixture in the range keeps the bound, the answer may lie beyond it{tail}"
        )
    if found.none_share:
        lines.append(f"recommended: in {found.none_share:.0%} of the draws no mixture keeps the bound{tail}")
    return lines


def critical_lines(fit: MixtureFit, found: CriticalRatio, what: str) -> list[str]:
    """The critical mixture ratio."""
    tail = f"  {EXTRAPOLATED}: by R_CMR(T) beyond the measured tokens" if found.extrapolated else ""
    if found.ratio != found.ratio:
        return [f"critical ratio: none, {what}, and no measured mixture keeps that{tail}"]
    lines = [
        f"critical ratio: {fit.new}={found.ratio:.4f}  95 % interval {found.low:.4f} to {found.high:.4f}  ({what})"
        f"{tail}"
    ]
    if found.at_edge:
        lines.append(
            f"critical ratio: the largest measured share keeps the bound, the answer may lie beyond it{tail}"
        )
    if found.none_share:
        lines.append(
            f"critical ratio: in {found.none_share:.0%} of the draws no measured mixture keeps the bound{tail}"
        )
    if found.law:
        beta, alpha, s = found.law
        lines.append(
            f"critical ratio: R_CMR(T) = {alpha:.5g} T^{s:.4g} {beta:+.5g} over the measured tokens, "
            f"rmse {found.law_rmse:.4f}{tail}"
        )
    return lines


def prediction_lines(fit: MixtureFit, found: Sequence[Prediction]) -> list[str]:
    """One line a loss."""
    lines = []
    for one in found:
        tail = f"  {EXTRAPOLATED}: {'; '.join(one.outside)}" if one.outside else ""
        where = mixture_text(np.array(one.shares), tuple(fit.domains))
        lines.append(
            f"{where}  {one.loss} {one.value:.4f} nats  95 % interval {one.low:.4f} to {one.high:.4f}{tail}"
        )
    return lines
