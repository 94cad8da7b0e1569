"""What the ranks tell each other in a step, in one small collective.

Place in the flow: once a step, between the gradient norm and the update, where the device has come to a halt anyway.
Invariant: every rank reads the same numbers, so what is decided from them is decided alike.
"""

from __future__ import annotations

import signal
from collections.abc import Set
from typing import NamedTuple

import torch
import torch.distributed as dist

from cptron.runtime.signals import STOP_SIGNALS


class Agreed(NamedTuple):
    """What all ranks know."""

    loss: float
    grad_norm: float
    limit: int
    """The number that rank 0 gave; 0 for nothing."""
    signals: Set[signal.Signals]
    """That came to any rank."""


def agree_on_step(loss: float, grad_norm: float, limit: int, received: int, device: torch.device) -> Agreed:
    """Rank 0's loss, gradient norm and limit on every rank (a last bit that differs must not make two ranks decide
    differently), and the signals of all; `received` is the number of this rank's, 0 for none. Collective."""
    mine = [loss, grad_norm, float(limit)] if dist.get_rank() == 0 else [0.0] * 3
    flags = [float(received == number) for number in STOP_SIGNALS]
    values = torch.tensor([*mine, *flags], dtype=torch.float64, device=device)
    dist.all_reduce(values)  # the sum with zeros is the number itself, NaN and infinity too
    loss, grad_norm, total, *counts = values.tolist()
    signals = {number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count}
    return Agreed(loss, grad_norm, int(total), signals)
