"""Learning rate as a pure function of the step.

Place in the flow: the loop asks for the rate of each step and writes it into the optimizer's groups, so
that no rate lives in a checkpoint and an override on resume is always obeyed. Imports no torch. Invariant: no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cptron.config.schema import OptimConfig
from cptron.optim.decay import decayed


def learning_rate(optim: OptimConfig, step: int, train_steps: int) -> float:
    """Rate of step `step` (from 0): a linear warm-up, then the shape that `optim.schedule` names."""
    if step < optim.warmup_steps:
        return optim.warmup_from + (optim.lr - optim.warmup_from) * (step + 1) / optim.warmup_steps
    return SHAPES[optim.schedule](optim, step, train_steps)


def decay_end(optim: OptimConfig, train_steps: int) -> int:
    """The step at which a decay has reached `lr_min`."""
    return optim.decay_steps or train_steps


def _constant(optim: OptimConfig, step: int, train_steps: int) -> float:
    return optim.lr


def _cosine(optim: OptimConfig, step: int, train_steps: int) -> float:
    """Half a cosine from the end of the warm-up (Loshchilov and Hutter 2017, without restarts)."""
    length = max(1, decay_end(optim, train_steps) - optim.warmup_steps)
    return decayed(optim.lr, optim.lr_min, "cosine", (step - optim.warmup_steps) / length)


def _inverse_sqrt(optim: OptimConfig, step: int, train_steps: int) -> float:
    """lr * sqrt(warmup_steps / step): knows no end."""
    return max(optim.lr_min, optim.lr * math.sqrt(optim.warmup_steps / max(1, step)))


def _wsd(optim: OptimConfig, step: int, train_steps: int) -> float:
    """Warm-up, stable, decay."""
    return _annealed(optim, optim.lr, step, train_steps)


def _infinite(optim: OptimConfig, step: int, train_steps: int) -> float:
    """Cool-down, constant for as long as one likes, decay on demand."""
    cooled = step - optim.warmup_steps
    if cooled < optim.cooldown_steps:
        return decayed(optim.lr, optim.lr_constant, optim.cooldown_form, cooled / optim.cooldown_steps)
    return _annealed(optim, optim.lr_constant, step, train_steps)


def _annealed(optim: OptimConfig, constant: float, step: int, train_steps: int) -> float:
    """`constant`, and a decay over the last `anneal_steps` before `decay_end`."""
    into_decay = step - (decay_end(optim, train_steps) - optim.anneal_steps)
    if optim.anneal_steps == 0 or into_decay <= 0:
        return constant
    return decayed(constant, optim.lr_min, optim.decay_form, into_decay / optim.anneal_steps)


SHAPES: dict[str, Callable[[OptimConfig, int, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "infinite": _infinite,
}
"""Name of a schedule -> its rate after the warm-up, by (optim, step, train_steps)."""
