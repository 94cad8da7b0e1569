"""Notices that a rank no longer comes forward, and shows where it is.

Place in the flow: a thread beside the loop, which marks its steps and phases in `pace`. Invariant: a process that was
suspended, or had no processor, is not hanging: only time in which this thread itself ran counts.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cptron.config.schema import RuntimeConfig
from cptron.runtime.pace import STEP, Pace

TICK_S = 0.5
STACKS = "stacks"


class Watchdog:
    """Calls `on_hang` once, in a thread, with what takes too long."""

    def __init__(self, pace: Pace, runtime: RuntimeConfig, on_hang: Callable[[str], None]) -> None:
        self._pace, self._runtime, self._on_hang = pace, runtime, on_hang
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if runtime.hang_factor:
            self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        seen, quiet_s, last_s = self._pace.entered, 0.0, time.monotonic()
        while not self._closed.wait(TICK_S):
            now_s = time.monotonic()
            quiet_s, last_s = quiet_s + min(now_s - last_s, 2 * TICK_S), now_s
            if self._pace.entered is not seen:
                seen, quiet_s = self._pace.entered, 0.0
            elif quiet_s > (limit_s := allowed_s(self._pace, self._runtime)):
                usual = f", the median is {self._pace.median_step_s():.2f} s" if seen[0] == STEP else ""
                self._on_hang(f"{seen[0]} has not ended for {quiet_s:.0f} s (limit {limit_s:.0f} s{usual})")
                return


def allowed_s(pace: Pace, runtime: RuntimeConfig) -> float:
    """Seconds after which what goes on now is a hang."""
    phase, usual_s = pace.entered[0], pace.median_step_s()
    if phase == STEP and usual_s:
        return max(runtime.hang_min_s, runtime.hang_factor * usual_s)
    return max(runtime.hang_phase_s, runtime.hang_factor * pace.longest_s(phase))


def stacks() -> str:
    """Where every thread of this process is. Reads no source files: their disk may be what hangs."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    frames = sys._current_frames()
    for ident in sorted(frames, key=lambda ident: ident != threading.main_thread().ident):
        frame = frames[ident]
        lines.append(f"thread {names.get(ident, ident)}, most recent call first:")
        at = frame
        while at is not None:
            code = at.f_code
            lines.append(f'  File "{code.co_filename}", line {at.f_lineno}, in {code.co_qualname}')
            at = at.f_back  # type: ignore[assignment]
    return "\n".join(lines) + "\n"


def keep_stacks(run_file: Path, rank: int, why: str, text: str) -> None:
    """Append the stacks to `RUN_DIR/stacks/rank_N.txt`. Raises OSError."""
    run = run_file.parent
    if run_file.is_file():  # a run that has not begun leaves nothing behind
        (run / STACKS).mkdir(exist_ok=True)
        with (run / STACKS / f"rank_{rank}.txt").open("a") as stream:
            stream.write(
                f"{datetime.now().astimezone().isoformat(timespec='seconds')} rank {rank}: {why}\n{text}\n"
            )
