"""Learning rate as a pure function of the step.

Place in the flow: the loop asks for the rate of each step and writes it into the optimizer's groups, so
that no rate lives in a checkpoint and an override on resume is always obeyed. Invariant: no state.
"""

from __future__ import annotations

import math

from cptron.config.schema import OptimConfig


def learning_rate(optim: OptimConfig, step: int, train_steps: int) -> float:
    """Rate of step `step` (from 0).

    Warm-up: lr * (step + 1) / warmup_steps. Cosine: lr_min + (lr - lr_min) / 2 * (1 + cos(pi * x)) with x
    from 0 at the end of warm-up to 1 at `decay_steps`, then `lr_min` (Loshchilov and Hutter 2017, without
    restarts).
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    decay_end = optim.decay_steps or train_steps
    progress = (step - optim.warmup_steps) / max(1, decay_end - optim.warmup_steps)
    return optim.lr_min + 0.5 * (optim.lr - optim.lr_min) * (1 + math.cos(math.pi * min(1.0, progress)))
