"""How long the steps of a run take, and the phases that are no steps.

Place in the flow: the loop marks where it is; `deadline` and `watchdog` read. Invariant: the clock is monotonic, so
that a change of the machine's time changes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

KEPT_STEPS = 128
START, STEP, EVALUATION, SAVE = "the start", "a step", "an evaluation", "a save"


class Pace:
    """Where this rank is, since when, and how long such things took before. Read by other threads."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.entered: tuple[str, float] = (START, self.started_s)
        """What goes on now, and the monotonic time at which it began; replaced as a whole."""
        self._steps_s: deque[float] = deque(maxlen=KEPT_STEPS)
        self._longest_s: dict[str, float] = {}
        self._saves_began_s: deque[float] = deque()

    def step_done(self) -> None:
        """A step has ended and the next begins. The first one, which also warms up, belongs to the start."""
        phase, since_s = self.entered
        now_s = time.monotonic()
        if phase == STEP:
            self._steps_s.append(now_s - since_s)
        self.entered = (STEP, now_s)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Something that is no step, between two steps or before the first."""
        before, since_s = self.entered
        began_s = time.monotonic()
        self.entered = (phase, began_s)
        try:
            yield
        finally:
            now_s = time.monotonic()
            self._longest_s[phase] = max(self.longest_s(phase), now_s - began_s)
            self.entered = (before, since_s + now_s - began_s)

    def save_begins(self) -> None:
        """A save begins; one that is asynchronous ends some steps later."""
        self._saves_began_s.append(time.monotonic())

    def save_ended(self) -> None:
        """The checkpoint of the oldest save that had not ended is published."""
        took_s = time.monotonic() - self._saves_began_s.popleft()
        self._longest_s[SAVE] = max(self.longest_s(SAVE), took_s)

    @property
    def unfinished_saves(self) -> int:
        """Saves that have begun and not ended."""
        return len(self._saves_began_s)

    def longest_s(self, phase: str) -> float:
        """The longest time such a phase has taken in this process; 0 before the first."""
        return self._longest_s.get(phase, 0.0)

    def median_step_s(self) -> float:
        """Of the last steps; 0 before the second."""
        return statistics.median(tuple(self._steps_s)) if self._steps_s else 0.0

    def slow_step_s(self) -> float:
        """The longest of the last steps; 0 before the second."""
        return max(tuple(self._steps_s), default=0.0)
