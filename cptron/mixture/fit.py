"""Laws fitted to a table of measured runs.

Place in the flow: between the readers and `fit_file`. Invariant: no law is fitted to fewer points than its parameters
and two, nor to data that vary something which the law does not contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cptron.errors import DataError
from cptron.mixture.bootstrap import bootstrap
from cptron.mixture.fit_file import KIND, VERSION, KeptPoint, LossFit, MixtureFit
from cptron.mixture.laws.law import Law
from cptron.mixture.laws.power import PowerLaw, own_share
from cptron.mixture.laws.registry import law_for, settings_of
from cptron.mixture.left_out import distinct, leave_out, shown
from cptron.mixture.points import SCALARS, Array, Baseline, Inputs, Point, Table, varies
from cptron.mixture.ranges import Ranges
from cptron.versions import installed_versions

SPARE_POINTS = 2
"""Beyond the number of parameters; fewer say nothing of the error."""
NEED_OWN = ("cmr", "d-cpt")
"""Laws of the share of the loss's own domain."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What is fitted, and how."""

    law: str
    losses: dict[str, tuple[str, ...]]
    """Loss -> its domains; empty: those of its name, if there are any."""
    old: str | None
    new: str | None
    draws: int
    seed: int


def fit_table(table: Table, options: FitOptions) -> MixtureFit:
    """Fit the law to every loss asked for. Raises `DataError`."""
    own = {loss: _own(table, loss, given, options.law) for loss, given in options.losses.items()}
    used = [point for point in table.points if point.losses.keys() & own.keys()]
    fits = [one for loss in own for one in _fits(table, options, loss, own[loss])]
    return MixtureFit(
        kind=KIND,
        version=VERSION,
        law=options.law,
        domains=list(table.domains),
        own={loss: [table.domains[i] for i in positions] for loss, positions in own.items()},
        old=options.old,
        new=options.new,
        seed=options.seed,
        ranges=Ranges.of(Inputs.of(used)),
        fits=fits,
        baselines=_known(table.baselines, own),
        points=[_kept(point, own) for point in used],
        versions=installed_versions(),
    )


def _own(table: Table, loss: str, given: Sequence[str], law: str) -> tuple[int, ...]:
    """Positions of the loss's domains. Raises DataError for a loss or domain that nothing measured."""
    losses = sorted({name for point in table.points for name in point.losses})
    if loss not in losses:
        raise DataError(
            f"no run has the loss {loss!r}, must be one of {', '.join(losses) or 'none'}; choose one"
        )
    names = given or ([loss] if loss in table.domains else [])
    for name in names:
        if name not in table.domains:
            raise DataError(
                f"{name!r} is no domain of the runs, must be one of {', '.join(table.domains)}; choose one"
            )
    if not names and law in NEED_OWN:
        raise DataError(
            f"the law {law} needs the share of the domain that {loss} measures, and none has this name; name it: "
            f"{loss}=DOMAIN, of {', '.join(table.domains)}"
        )
    return tuple(table.domains.index(name) for name in names)


def _fits(table: Table, options: FitOptions, loss: str, own: tuple[int, ...]) -> list[LossFit]:
    """One fit, or one for each mixture where the law is one of the tokens."""
    points = [point for point in table.points if loss in point.losses]
    inputs = Inputs.of(points)
    varied = [name for name in SCALARS if varies(getattr(inputs, name))]
    law = law_for(options.law, table.domains, own, varied, old=loss == options.old)
    for name in varied:
        if name not in law.scalars:
            least, largest = np.nanmin(getattr(inputs, name)), np.nanmax(getattr(inputs, name))
            raise DataError(
                f"the runs of {loss} have {name} from {least:.4g} to {largest:.4g}, the law {options.law} is for one "
                f"value; leave runs out, or use d-cpt{', or cmr-tokens' if name == 'tokens' else ''}"
            )
        if not np.isfinite(getattr(inputs, name)).all():
            raise DataError(f"some runs of {loss} have no {name}, and others differ in it; add it to all")
    if isinstance(law, PowerLaw) and law.own and (own_share(inputs, own) == 0).any():
        raise DataError(
            f"{loss} was measured at a share of 0 of its own domain, where the law cmr has no value; leave these runs "
            "out, or use d-cpt"
        )
    if options.law != "cmr-tokens":
        return [_fit(table, options, loss, law, points, [])]
    mixtures = list(dict.fromkeys(point.shares for point in points))
    return [
        _fit(table, options, loss, law, [p for p in points if p.shares == shares], list(shares))
        for shares in mixtures
    ]


def _fit(
    table: Table, options: FitOptions, loss: str, law: Law, points: list[Point], mixture: list[float]
) -> LossFit:
    inputs, losses = Inputs.of(points), np.array([point.losses[loss] for point in points])
    where = f"{loss} at {shown(inputs.shares[0], table.domains)}" if mixture else loss
    _require_enough(where, options.law, law, inputs)
    parameters = law.fit(inputs, losses, np.random.default_rng(options.seed))
    runs = (
        [point.run or str(number) for number, point in enumerate(points)]
        if not mixture
        else list(map(str, range(len(points))))
    )
    draws = bootstrap(law, parameters, inputs, losses, runs, options.draws, options.seed)
    return LossFit(
        loss=loss,
        settings=settings_of(law),
        parameters=parameters.tolist(),
        draws=draws.tolist(),
        rmse=rmse(law, parameters, inputs, losses),
        left_out=leave_out(law, inputs, losses, table.domains, options.seed),
        num_points=len(points),
        mixture=mixture,
    )


def rmse(law: Law, parameters: Array, inputs: Inputs, losses: Array) -> float:
    """Root mean square error of a fit, in nats."""
    return float(np.sqrt(np.mean((law.values(parameters, inputs) - losses) ** 2)))


def _require_enough(where: str, name: str, law: Law, inputs: Inputs) -> None:
    size = len(law.parameters)
    if len(inputs) < size + SPARE_POINTS:
        raise DataError(
            f"{where} has {len(inputs)} points, the law {name} with its {size} parameters needs at least "
            f"{size + SPARE_POINTS}; measure more, or use a law with fewer parameters"
        )
    if (found := len(distinct(inputs))) < size:
        raise DataError(
            f"{where} was measured at {found} different settings, the law {name} needs at least its {size} "
            "parameters; repeated runs tell nothing of its form, measure other mixtures"
        )


def _known(baselines: Sequence[Baseline], own: dict[str, Any]) -> list[Baseline]:
    """Baselines of the fitted losses, one for each size of model. Raises DataError where two disagree."""
    found: dict[float, dict[str, float]] = {}
    for baseline in baselines:
        params = baseline.params if baseline.params == baseline.params else 0.0
        losses = {name: loss for name, loss in baseline.losses.items() if name in own}
        for name, loss in losses.items():
            other = found.setdefault(params, {}).setdefault(name, loss)
            if abs(other - loss) > 1e-3 * max(abs(loss), 1e-9):
                raise DataError(
                    f"the models before training have losses {other:.5g} and {loss:.5g} on {name}, must start from "
                    "the same; leave runs of other models out"
                )
    return [Baseline(params, losses) for params, losses in found.items()]


def _kept(point: Point, own: dict[str, Any]) -> KeptPoint:
    losses = {name: loss for name, loss in point.losses.items() if name in own}
    params, learnability = (None if value != value else value for value in (point.params, point.learnability))
    return KeptPoint(point.run, list(point.shares), losses, point.tokens, params, learnability)
