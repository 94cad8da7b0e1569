"""How sure a fit is: parameters refitted to losses that could as well have been measured.

Place in the flow: after `fit`, before every interval that is printed. The fitted law plus drawn noise gives new losses,
the law is fitted to them, and intervals are quantiles of what comes out. The scale of the noise is itself drawn, from
what the residuals leave open: for a law that is linear in its parameters the intervals are then Student's. Points of
one run get their noise together. Invariant: a draw depends on the seed and its number only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cptron.mixture.laws.law import Law
from cptron.mixture.points import Array, Inputs

LEVEL = 0.95
"""Of every interval."""


def bootstrap(
    law: Law, parameters: Array, inputs: Inputs, losses: Array, runs: Sequence[str], count: int, seed: int
) -> Array:
    """`count` x parameters. `runs` names the run of each point."""
    fitted = law.values(parameters, inputs)
    free = max(1.0, len(losses) - law.num_effective(inputs, losses))
    residuals = (losses - fitted) * np.sqrt(len(losses) / free)
    numbers = np.unique(np.array(runs), return_inverse=True)[1]
    num_runs = int(numbers.max()) + 1
    together = num_runs < len(losses)
    if together:
        free = max(1.0, min(free, num_runs - 1.0))
    scale = float(np.sqrt(np.mean(residuals**2)))
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        wider = np.sqrt(free / rng.chisquare(free))
        if together:
            noise = residuals * rng.standard_normal(num_runs)[numbers]
        else:
            noise = scale * rng.standard_normal(len(losses))
        found.append(law.fit(inputs, fitted + wider * noise, rng, parameters))
    return np.array(found)


def interval(draws: Array) -> tuple[Array, Array]:
    """Lower and upper end for each column of draws."""
    tail = (1 - LEVEL) / 2
    return np.quantile(draws, tail, axis=0), np.quantile(draws, 1 - tail, axis=0)
