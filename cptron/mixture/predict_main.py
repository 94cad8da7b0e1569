"""`cptron mixlaw predict FIT.json`: losses at mixtures, and the mixture for a bound, from a stored fit.

Place in the flow: `main` hands over here. Invariant: nothing outside what was measured is printed without
`--extrapolate`, and with it every such line says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptron.errors import ConfigError
from cptron.mixture.bound import Bound, baseline_of, parse_bound
from cptron.mixture.critical import critical_ratio
from cptron.mixture.fit_file import MixtureFit, read_fit
from cptron.mixture.fit_main import add_bound, write_page
from cptron.mixture.picture import fit_page
from cptron.mixture.points import SCALARS, Inputs
from cptron.mixture.predict import DISAGREEMENT, Prediction, parse_mixture, predict, scalars_for
from cptron.mixture.recommend import recommend
from cptron.mixture.shown import critical_lines, prediction_lines, recommendation_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `predict`."""
    parser.description = "Losses at mixtures, and the mixture for a bound on the old loss, from a fit."
    add = parser.add_argument
    add("fit", type=Path, metavar="FIT.json", help="of cptron mixlaw fit")
    add("--shares", action="append", default=[], metavar="D=S,D=S", help="a mixture; several times")
    add("--tokens", type=float, help="training tokens, where the runs differ in them")
    add("--params", type=float, help="parameters of the model, where the runs differ in them")
    add("--learnability", type=float, help="K of the cross-domain D-CPT law, where the runs differ in it")
    add("--extrapolate", action="store_true", help="also outside what was measured")
    add("--json", action="store_true", help="print JSON instead of text")
    add("--plot", type=Path, metavar="FILE.html", help="a page with fit, intervals and points")
    add_bound(parser)


def run(args: argparse.Namespace) -> int:
    """Predict and print."""
    fit = read_fit(args.fit)
    for name in (*SCALARS, "old_baseline_nats"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be a number above 0; correct it")
    asked = args.max_old_increase_nats or args.max_old_increase_percent
    if not args.shares and not asked:
        raise ConfigError(
            f"{args.fit}: nothing is asked for; name --shares, --max-old-increase-nats or --max-old-increase-percent"
        )
    at = scalars_for(fit, {name: getattr(args, name) for name in SCALARS}, extrapolate=args.extrapolate)
    mixtures = [parse_mixture(fit, text) for text in args.shares]
    found = [one for m in mixtures for one in predict(fit, at, m, extrapolate=args.extrapolate)]
    lines, facts = prediction_lines(fit, found), _facts(fit, found)
    recommended = None
    if asked:
        bound = parse_bound(args.max_old_increase_nats, args.max_old_increase_percent)
        baseline = baseline_of(fit, float(at.params[0]), args.old_baseline_nats)
        if fit.law == "cmr-tokens":
            more, facts["critical_ratio"] = _critical(fit, at, bound, baseline)
        else:
            outside = fit.ranges.scalar_reasons(at, 0)
            recommended = recommend(fit, at, bound, baseline, extrapolate=args.extrapolate)
            outside += _outside_shares(fit, at, recommended.shares)
            more = recommendation_lines(fit, recommended, outside)
            facts["recommended"] = asdict(recommended) | {"outside": outside}
        lines += more
    if args.json:
        print(json.dumps(facts | {"note": DISAGREEMENT}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*lines, DISAGREEMENT]))
    if args.plot:
        write_page(args.plot, fit_page(fit, at, recommended))
    return 0


def _facts(fit: MixtureFit, found: Sequence[Prediction]) -> dict[str, Any]:
    return {"domains": fit.domains, "predictions": [asdict(one) for one in found]}


def _critical(fit: MixtureFit, at: Inputs, bound: Bound, baseline: float) -> tuple[list[str], Any]:
    limit = bound.limit(baseline)
    found = critical_ratio(fit, float(at.tokens[0]), limit)
    what = f"{fit.old} may rise by {bound}, to {limit:.4f} nats"
    facts = {name: None if value != value else value for name, value in asdict(found).items()}
    return critical_lines(fit, found, what), facts


def _outside_shares(fit: MixtureFit, at: Inputs, shares: list[float]) -> list[str]:
    """Why a recommended mixture is outside what was measured."""
    import numpy as np

    if not shares:
        return []
    point = at.at(np.array([shares]))
    scalar = fit.ranges.scalar_reasons(point, 0)
    return [text for text in fit.ranges.reasons(point, 0, tuple(fit.domains)) if text not in scalar]
