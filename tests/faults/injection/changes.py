"""What a rank does to itself before it trains: things that no signal and no file can bring about from outside.

Place in the flow: named to `ranks.training`, called in the forked process. Invariant: nothing of the engine is
replaced; a value it reads is changed, then it goes on.
"""

from __future__ import annotations

import random
import time
from typing import Any

DAY_S = 86400.0


def poison(rank: int, *, victim: int, step: int, part: str, factor: float) -> None:
    """Multiply a weight of rank `victim`, the first with `part` in its name, just before the step after `step`."""
    if rank != victim:
        return
    from cptron.train import loop

    train_step, done = loop.train_step, 0

    def poisoned(chunks: Any, *words: Any, **given: Any) -> Any:
        nonlocal done
        if done == step:
            named = [pair for chunk in chunks for pair in chunk.named_parameters()]
            next(weight for name, weight in named if part in name).data.mul_(factor)
        done += 1
        return train_step(chunks, *words, **given)

    loop.train_step = poisoned


def jumping_clock(rank: int, *, seed: int) -> None:
    """Let the clock of the wall jump by up to a day, forwards or back, every few times it is read."""
    draw, clock, clock_ns = random.Random(seed + rank), time.time, time.time_ns
    offset_s = 0.0

    def jump() -> float:
        nonlocal offset_s
        if draw.random() < 0.3:
            offset_s = draw.uniform(-DAY_S, DAY_S)
        return offset_s

    time.time = lambda: clock() + jump()
    time.time_ns = lambda: clock_ns() + int(jump() * 1e9)
