"""Where a step lies: the tokens trained on and the hours taken until then.

Place in the flow: `thin`, `charts` and `happened` ask it, so that every chart can be read by steps, tokens or hours.
Invariant: between two logged steps the place is on the line between them; what was not trained has no hours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cptron.config.schema import Config
from cptron.report.sinks import Record
from cptron.report.spec import Grid
from cptron.report.steplog import Numbers, StepLog


class Places:
    """Of one run."""

    def __init__(self, steps: StepLog, evals: Sequence[Record], config: Config) -> None:
        tokens = steps.column("tokens_total")
        there = np.isfinite(tokens)
        known = {0.0: 0.0} | dict(zip(steps.steps[there].tolist(), tokens[there].tolist(), strict=True))
        if not len(steps):
            known |= {float(record["step"]): float(record["tokens_total"]) for record in evals}
        self._steps = np.array(sorted(known))
        self._tokens = np.array([known[step] for step in self._steps.tolist()])
        self._timed = np.concatenate([[0.0], steps.steps])
        self._hours = np.concatenate([[0.0], hours_of(steps)])
        last, reached = float(self._steps[-1]), float(self._tokens[-1])
        planned = float(config.train.global_batch_size * config.data.seq_length)
        self._tokens_per_step = reached / last if last > 0 and reached > 0 else planned

    def tokens(self, steps: Numbers) -> Numbers:
        """Beyond the log at the mean pace so far."""
        beyond = np.maximum(steps - self._steps[-1], 0.0) * self._tokens_per_step
        inside: Numbers = np.interp(steps, self._steps, self._tokens)
        found: Numbers = inside + beyond
        return found

    def hours(self, steps: Numbers) -> Numbers:
        """NaN beyond the log."""
        inside: Numbers = np.interp(steps, self._timed, self._hours, right=np.nan)
        return inside

    def grid(self, steps: Sequence[float]) -> Grid:
        """A grid of these steps."""
        at = np.array(steps, dtype=np.float64)
        return Grid(
            step=list(steps),
            tokens=numbers(np.round(self.tokens(at)), None),
            hours=numbers(self.hours(at), 7),
        )

    def one(self, step: float) -> tuple[float | None, float | None]:
        """Tokens and hours of one step."""
        grid = self.grid([step])
        return grid.tokens[0], grid.hours[0]


def hours_of(log: StepLog) -> Numbers:
    """Hours of the steps until each row: a row's time holds for the steps since the row before, where these were not
    logged. Evaluations, saves and pauses are not in it."""
    times = np.nan_to_num(log.column("step_time_s"))
    since = np.diff(log.steps, prepend=0.0)
    hours: Numbers = np.cumsum(times * np.maximum(since, 0.0)) / 3600.0
    return hours


def numbers(values: Numbers, digits: int | None) -> list[float | None]:
    """For JSON: None where there is no number; whole numbers without a point, others to so many digits."""
    found: list[float | None] = []
    for value in values.tolist():
        if value != value or value in (np.inf, -np.inf):
            found.append(None)
        elif value == int(value) and abs(value) < 2**53:
            found.append(int(value))
        else:
            found.append(value if digits is None else float(f"{value:.{digits}g}"))
    return found
