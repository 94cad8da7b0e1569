"""How far the machines' clocks are apart, by questions to each and the time of the answer.

Place in the flow: measured by `cptron doctor --cluster` between rank 0 and the first rank of every other machine.
Invariant: a difference comes with how wrong it can be: half the time of the fastest round trip.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

ROUNDS = 12


class Skew(NamedTuple):
    """A machine's clock beside rank 0's."""

    host: str
    ahead_s: float
    """Negative: behind."""
    uncertainty_s: float


def measure_clocks(hosts: Sequence[str], device: torch.device) -> list[Skew]:
    """Of every machine but rank 0's, the same on every rank; collective."""
    firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
    found = []
    for rank in firsts[1:]:
        if dist.get_rank() == 0:
            found.append(Skew(hosts[rank], *_asked(rank, device)))
        elif dist.get_rank() == rank:
            _answer(device)
    result: list[Any] = [found]
    dist.broadcast_object_list(result, src=0)
    return [Skew(*skew) for skew in result[0]]


def _asked(rank: int, device: torch.device) -> tuple[float, float]:
    """Difference and uncertainty of the fastest round trip."""
    best = (0.0, float("inf"))
    told = torch.zeros(1, dtype=torch.float64, device=device)
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        # Within the interval, so that a pause between these two lines is in the uncertainty.
        asked_s = time.time()
        dist.send(told, rank)
        dist.recv(told, rank)
        theirs_s = float(told.item())
        took_s = time.perf_counter() - began_s
        if took_s / 2 < best[1]:
            best = (theirs_s - (asked_s + took_s / 2), took_s / 2)
    return best


def _answer(device: torch.device) -> None:
    told = torch.zeros(1, dtype=torch.float64, device=device)
    for _ in range(ROUNDS):
        dist.recv(told, 0)
        told.item()  # the question has come, also on a GPU
        told.fill_(time.time())
        dist.send(told, 0)
