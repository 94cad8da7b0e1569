"""When a run has to stop and save to be through in time.

Place in the flow: asked in each step; what rank 0 finds holds for all (`agreement`). Invariant: the machine's clock is
read once, to learn how long the job still has; from then on only the monotonic clock counts.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from enum import IntEnum

from cptron.config.schema import RuntimeConfig
from cptron.runtime.pace import EVALUATION, SAVE, Pace

MARGIN_STEPS = 3
LONGEST_JOB_S = 10 * 366 * 86400.0
"""What ends later is no job: the number was in another unit."""
JOB_END = "SLURM_JOB_END_TIME"
STARTED = "CPTRON_STARTED_S"
"""Set by whoever starts ranks again: monotonic time in seconds from which `runtime.time_limit_minutes` counts."""


class Limit(IntEnum):
    """What a run is stopped for; the number goes through `agreement`."""

    NONE = 0
    TIME_LIMIT = 1
    JOB_END = 2

    @property
    def reason(self) -> str:
        """As it is told: `stopped by ...`."""
        return {1: "runtime.time_limit_minutes", 2: "the end of the job's time"}[self.value]


class Deadline:
    """The limits of one run, as monotonic times in seconds."""

    def __init__(
        self, runtime: RuntimeConfig, pace: Pace, environ: Mapping[str, str] | None = None, now_s: float = 0.0
    ) -> None:
        env = os.environ if environ is None else environ
        self._pace = pace
        self._margin_s = float(runtime.stop_margin_s)
        self._ends_s: dict[Limit, float] = {}
        self.notes: list[str] = []
        """What the user should see of it."""
        if runtime.time_limit_minutes:
            started_s = float(env.get(STARTED, pace.started_s))
            self._ends_s[Limit.TIME_LIMIT] = started_s + 60 * runtime.time_limit_minutes
        if runtime.stop_before_job_end and JOB_END in env:
            self._read_job_end(env[JOB_END], now_s or time.time())

    def _read_job_end(self, text: str, now_s: float) -> None:
        try:
            left_s = float(text) - now_s
        except ValueError:
            left_s = math.nan
        if not 0 < left_s < LONGEST_JOB_S:
            self.notes.append(f"{JOB_END}={text} is no end of this job: the end of the job is not watched")
            return
        self._ends_s[Limit.JOB_END] = time.monotonic() + left_s
        self.notes.append(
            f"the job ends in {left_s / 60:.0f} min ({JOB_END}): the run stops and saves before, with at least "
            f"{self._margin_s:g} s to spare"
        )

    def near(self, *, evaluation_is_due: bool = False) -> Limit:
        """The limit for which the run has to stop now: what is left is no more than the longest save, a few steps
        (and an evaluation, where one comes first), or than `runtime.stop_margin_s`."""
        pace = self._pace
        needed_s = (1 + pace.unfinished_saves) * pace.longest_s(SAVE) + MARGIN_STEPS * pace.slow_step_s()
        needed_s += pace.longest_s(EVALUATION) if evaluation_is_due else 0.0
        latest_s = time.monotonic() + max(needed_s, self._margin_s)
        return max((limit for limit, end_s in self._ends_s.items() if latest_s >= end_s), default=Limit.NONE)
