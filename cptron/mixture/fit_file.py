"""A fit as it is kept: JSON with the law, its parameters, what they were drawn to, and the points themselves.

Place in the flow: written by `cptron mixlaw fit`, read by `predict`. Invariant: what is read back can be evaluated
without the data it came from; a file that says anything else is refused with one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.mixture.laws.law import Law
from cptron.mixture.laws.registry import LAWS, stored_law
from cptron.mixture.left_out import LeftOut
from cptron.mixture.points import SCALARS, Array, Baseline
from cptron.mixture.ranges import Ranges
from cptron.typed import require_types

KIND = "cptron mixture law"
VERSION = 1


@dataclass(frozen=True, slots=True)
class LossFit:
    """The law of one loss."""

    loss: str
    settings: dict[str, Any]
    """The law, as `registry.stored_law` reads it."""
    parameters: list[float]
    draws: list[list[float]]
    """Parameters fitted to redrawn losses (`bootstrap`)."""
    rmse: float
    """Root mean square error of the fit, in nats."""
    left_out: LeftOut
    num_points: int
    mixture: list[float]
    """Shares at which the law holds; empty: it is a law of the shares."""

    def law(self, domains: list[str]) -> Law:
        """The formula."""
        return stored_law(self.settings, domains)

    @property
    def drawn(self) -> Array:
        """Draws x parameters."""
        return np.array(self.draws, float)


@dataclass(frozen=True, slots=True)
class KeptPoint:
    """What was fitted; None where it was not recorded."""

    run: str
    shares: list[float]
    losses: dict[str, float]
    tokens: float
    params: float | None
    learnability: float | None

    def scalar(self, name: str) -> float:
        """One of `points.SCALARS`; NaN where it was not recorded."""
        value = getattr(self, name)
        return math.nan if value is None else float(value)


@dataclass(frozen=True, slots=True)
class MixtureFit:
    """All that `cptron mixlaw fit` found."""

    kind: str
    version: int
    law: str
    """Name in `registry.LAWS`."""
    domains: list[str]
    own: dict[str, list[str]]
    """Loss -> its domains, where it has any."""
    old: str | None
    """The loss that may be forgotten."""
    new: str | None
    """The loss that training is for."""
    seed: int
    ranges: Ranges
    fits: list[LossFit]
    baselines: list[Baseline]
    """Models before training; params 0 where unknown."""
    points: list[KeptPoint]
    versions: dict[str, str]

    def points_of(self, loss: str) -> list[KeptPoint]:
        """Those at which this loss was measured."""
        return [point for point in self.points if loss in point.losses]

    def fit_of(self, loss: str, mixture: list[float] | None = None) -> LossFit | None:
        """The fit of a loss; of a law of the tokens, the one at this mixture."""
        for fit in self.fits:
            here = not fit.mixture or (mixture is not None and np.allclose(fit.mixture, mixture, atol=1e-6))
            if fit.loss == loss and here:
                return fit
        return None


def write_fit(path: Path, fit: MixtureFit) -> None:
    """Write the JSON. Raises `DataError`."""
    text = json.dumps(asdict(fit), ensure_ascii=False, allow_nan=False, indent=1)
    try:
        replace_text(path, text + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}); choose another file") from None


def read_fit(path: Path) -> MixtureFit:
    """The fit in a file. Raises `DataError` where it is none."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("kind") != KIND or values.get("version") != VERSION:
            raise ValueError(f"its kind and version are not {KIND} {VERSION}")
        fit: MixtureFit = _record(MixtureFit, values)
        _check(fit)
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(
            f"{path} is no fit of cptron mixlaw ({error}); make it again with `cptron mixlaw fit`"
        ) from None
    return fit


def _record(kind: Any, values: Any) -> Any:
    """A record of the dataclass `kind`, its parts included; raises TypeError where the types are others."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__} is {values!r:.80}, must be an object")
    given = dict(values)
    if kind is MixtureFit:
        given["ranges"] = _record(Ranges, given["ranges"])
        given["fits"] = [_record(LossFit, one) for one in _list(given["fits"])]
        given["points"] = [_record(KeptPoint, one) for one in _list(given["points"])]
        given["baselines"] = [_record(Baseline, one) for one in _list(given["baselines"])]
    if kind is LossFit:
        given["left_out"] = _record(LeftOut, given["left_out"])
    if unknown := given.keys() - {field.name for field in fields(kind)}:
        raise TypeError(f"{sorted(unknown)[0]!r} is no part of {kind.__name__}")
    record = kind(**given)
    require_types(record)
    return record


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} must be a list")
    return value


def _check(fit: MixtureFit) -> None:
    """Raise ValueError where the parts do not belong together."""
    domains = len(fit.domains)
    if fit.law not in LAWS or not domains or len(set(fit.domains)) != domains or not fit.fits:
        raise ValueError(
            f"law {fit.law!r} over the domains {fit.domains!r:.80} with {len(fit.fits)} fits is none"
        )
    ends = [*fit.ranges.shares, *fit.ranges.scalars.values()]
    if len(fit.ranges.shares) != domains or not fit.ranges.scalars.keys() <= set(SCALARS):
        raise ValueError("its ranges are not those of its domains")
    if not all(len(pair) == 2 and all(map(math.isfinite, pair)) and pair[0] <= pair[1] for pair in ends):
        raise ValueError("its ranges are not from a least to a largest value")
    for one in fit.fits:
        _check_loss(fit, one)
    for point in fit.points:
        if len(point.shares) != domains or not all(
            map(math.isfinite, [*point.shares, *point.losses.values()])
        ):
            raise ValueError(f"a point must have {domains} shares, and finite losses")
        if not all(math.isfinite(n) for n in (point.tokens, point.params or 0, point.learnability or 0)):
            raise ValueError(f"the point of {point.run!r:.80} must be of finite numbers")
    for baseline in fit.baselines:
        if not all(map(math.isfinite, [baseline.params, *baseline.losses.values()])):
            raise ValueError("a baseline is not finite")


def _check_loss(fit: MixtureFit, one: LossFit) -> None:
    try:
        size = len(one.law(fit.domains).parameters)
    except DataError as error:
        raise ValueError(str(error)) from None
    rows = [one.parameters, *one.draws]
    if not one.draws or not all(len(row) == size and all(map(math.isfinite, row)) for row in rows):
        raise ValueError(
            f"the parameters of {one.loss!r:.80} and their draws must be {size} finite numbers each"
        )
    if one.mixture and len(one.mixture) != len(fit.domains):
        raise ValueError(f"the mixture of {one.loss!r:.80} must have {len(fit.domains)} shares")
