"""How much the old loss may rise: in nats, or as a part of what it was.

Place in the flow: `fit` and `predict` parse it, `recommend` and `critical` hold mixtures against it. Invariant: it is
always counted from the model before training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cptron.errors import ConfigError, DataError
from cptron.mixture.fit_file import MixtureFit

DEFAULT_NATS = 0.05


@dataclass(frozen=True, slots=True)
class Bound:
    """One of the two is 0."""

    nats: float = 0.0
    percent: float = 0.0

    def __str__(self) -> str:
        return f"{self.percent:g} %" if self.percent else f"{self.nats:g} nats"

    def limit(self, baseline: float) -> float:
        """The largest old loss that is allowed."""
        return baseline + self.nats + baseline * self.percent / 100


def parse_bound(nats: str | None, percent: str | None) -> Bound:
    """What the two options say; a `%` after the percentage is allowed. Raises `ConfigError`."""
    if nats is not None and percent is not None:
        raise ConfigError(
            f"--max-old-increase-nats {nats} and --max-old-increase-percent {percent} are two bounds, must be one; "
            "leave one out"
        )
    if percent is not None:
        return Bound(percent=_number("--max-old-increase-percent", percent.removesuffix("%")))
    return Bound(nats=DEFAULT_NATS if nats is None else _number("--max-old-increase-nats", nats))


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise ConfigError(f"{option} {text} must be a number above 0; correct it")
    return value


def baseline_of(fit: MixtureFit, params: float, given: float | None) -> float:
    """Old loss before training of the model of this size; `given` comes first. Raises `DataError` where unknown."""
    if given is not None:
        return given
    if fit.old is None:
        raise DataError(f"the fit of {', '.join(fit.own)} has no old loss; name --old to cptron mixlaw fit")
    known = [one for one in fit.baselines if fit.old in one.losses]
    if len(known) == 1:
        return known[0].losses[fit.old]
    for one in known:
        if math.isclose(one.params, params, rel_tol=0.01):
            return one.losses[fit.old]
    raise DataError(
        f"the fit has {len(known)} losses of {fit.old} before training, and none for {params:.4g} parameters; give "
        "--old-baseline-nats, or fit runs that were evaluated at step 0 (in a file: a row with tokens 0)"
    )
