"""What the ranks tell each other after a step, in one small collective.

Place in the flow: the loop reports into it and reads the answer, once a step. Invariant: every rank reads the same
numbers, so what is decided from them is decided alike.
"""

from __future__ import annotations

from enum import IntEnum, auto

import torch
import torch.distributed as dist


class Slot(IntEnum):
    """What can be told; of what the ranks report, the largest number wins."""

    SIGNAL = 0
    """Number of a stop signal that a rank received."""
    DEADLINE = auto()
    """A `Limit` that has come near; only rank 0's clock counts."""


class StepStatus:
    """The slots of one step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._mine = [0] * len(Slot)

    def report(self, slot: Slot, value: int) -> None:
        """Have `value` (0: nothing to tell) take part in the next agreement."""
        self._mine[slot] = value

    def agree(self) -> dict[Slot, int]:
        """The largest number that any rank reported for each slot; collective. Reports start anew."""
        values = torch.tensor(self._mine, device=self._device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        self._mine = [0] * len(Slot)
        return dict(zip(Slot, values.tolist(), strict=True))
