"""Requests to stop, from the scheduler or the keyboard.

Place in the flow: the ranks tell each other in each step what came to them. Invariant: a signal never interrupts
a step; what stops all ranks after the same step is `agreement`.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Remembers that a stop signal came; the step in progress is finished first."""

    def __init__(self) -> None:
        self.received = 0
        """Number of the last signal, 0 for none."""
        self._previous: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take the signals."""
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def close(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """For a process that has nothing left to do but to exit with its own code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, so that no rank outlives a killed launcher.
    Linux only; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
