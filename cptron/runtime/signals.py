"""Requests to stop, from the scheduler or the keyboard.

Place in the flow: asked by the loop after each step, on all ranks together. Invariant: a signal to any one
rank stops all ranks after the same step.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers that a stop signal came; the step in progress is finished first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._received = 0
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def anywhere(self) -> str:
        """Name of a signal that some rank received, else an empty string; collective."""
        flag = torch.tensor([self._received], device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        number = int(flag.item())
        return signal.Signals(number).name if number else ""

    def close(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
