"""How well a fit predicts what it has not seen: each mixture left out in turn.

Place in the flow: `fit` reports it beside the error of the fit itself. Invariant: all points of one mixture and model
size go out together, so that neither a later evaluation of the run nor its twin with another seed gives the answer
away; an error beyond the range of what remained is counted apart, because that is extrapolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cptron.mixture.laws.law import Law
from cptron.mixture.points import SCALARS, Array, Inputs
from cptron.mixture.ranges import Ranges

MOST_GROUPS = 48
"""Of more mixtures several are left out at a time, drawn by the seed."""
FEW = 4
"""Domains that are all shown."""
DIGITS = 9
"""To which two shares are the same."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Errors of prediction in nats; None where nothing could be left out so."""

    inside_mean: float | None
    """Mean size of the errors within the range of the rest."""
    inside_largest: float | None
    edge_largest: float | None
    """Beyond the range of the rest."""
    edge_at: str
    """The mixture of that error."""
    skipped: int
    """Mixtures without which too few points remain for a fit."""


def leave_out(law: Law, inputs: Inputs, losses: Array, domains: tuple[str, ...], seed: int) -> LeftOut:
    """Fit the law without each mixture, and predict it."""
    groups = _groups(inputs, seed)
    inside: list[float] = []
    edge: list[tuple[float, str]] = []
    skipped = 0
    for number in range(int(groups.max()) + 1):
        out = groups == number
        rest = inputs.take(~out)
        if len(rest) < len(law.parameters) or _num_distinct(rest) < len(law.parameters):
            skipped += 1
            continue
        parameters = law.fit(rest, losses[~out], np.random.default_rng([seed, number]))
        gone = inputs.take(out)
        errors = np.abs(law.values(parameters, gone) - losses[out])
        known = Ranges.of(rest)
        for row, error in enumerate(map(float, errors)):
            if known.reasons(gone, row, domains):
                edge.append((error, shown(gone.shares[row], domains)))
            else:
                inside.append(error)
    worst, worst_at = max(edge, default=(None, ""), key=lambda pair: pair[0] or 0.0)
    mean = float(np.mean(inside)) if inside else None
    return LeftOut(mean, max(inside, default=None), worst, worst_at, skipped)


def shown(shares: Array, domains: tuple[str, ...]) -> str:
    """A mixture as people read it; of many domains those that are in it."""
    pairs = zip(domains, shares, strict=True)
    return " ".join(f"{name}={share:.4g}" for name, share in pairs if share > 0 or len(domains) <= FEW)


def distinct(inputs: Inputs) -> Array:
    """Rows of all that is varied, without repetitions."""
    columns = [inputs.shares, *(np.nan_to_num(getattr(inputs, name))[:, None] for name in SCALARS)]
    return np.unique(np.round(np.concatenate(columns, axis=1), DIGITS), axis=0)


def _num_distinct(inputs: Inputs) -> int:
    return len(distinct(inputs))


def _groups(inputs: Inputs, seed: int) -> Array:
    """A number for each point: of its mixture, size and learnability; of its tokens where these are all the same."""
    keys = np.concatenate(
        [inputs.shares, np.nan_to_num(np.stack([inputs.params, inputs.learnability], axis=1))], axis=1
    )
    numbers = np.unique(np.round(keys, DIGITS), axis=0, return_inverse=True)[1].ravel()
    if numbers.max() == 0:
        numbers = np.unique(inputs.tokens, return_inverse=True)[1].ravel()
    count = int(numbers.max()) + 1
    if count > MOST_GROUPS:
        numbers = (np.random.default_rng(seed).permutation(count) % MOST_GROUPS)[numbers]
    return np.asarray(numbers)
