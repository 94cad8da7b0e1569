"""The step at which a schedule has fallen so far.

Place in the flow: stages that end at a part of the peak rate are resolved by it before the run. Imports no torch.
Invariant: after its warm-up no schedule rises, so there is one such step.
"""

from __future__ import annotations

import bisect

from cptron.config.schema import OptimConfig
from cptron.optim.schedule import learning_rate


def step_reached(optim: OptimConfig, train_steps: int, fraction: float) -> int | None:
    """The first step (from 0) after the warm-up whose rate is at most `fraction` of `optim.lr`; None where it comes
    to none within `train_steps`."""
    after = range(optim.warmup_steps, train_steps)
    limit = fraction * optim.lr * (1 + 1e-12)
    found = bisect.bisect_left(after, True, key=lambda step: learning_rate(optim, step, train_steps) <= limit)
    return after[found] if found < len(after) else None
