"""The stretches of a schedule: which steps warm up, cool down, stay constant or decay.

Place in the flow: `cptron anneal` and a start from another run ask which phase a checkpoint is from; notes and reports
describe a schedule by them. Imports no torch. Invariant: the stretches follow each other without gap from step 0, and
within one of them `learning_rate` rises, falls or stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cptron.config.schema import OptimConfig
from cptron.optim.schedule import decay_end, learning_rate

CONSTANT = "constant"
DECAYED = "decayed"


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps of one kind."""

    name: str
    """`warm-up`, `cool-down`, `constant`, `decay` or `decayed`."""
    first: int
    """First step, from 0."""
    stop: int | None
    """The first step after it; None: it has no end."""

    def __str__(self) -> str:
        end = "on" if self.stop is None else f"to {self.stop - 1}"
        return f"{self.name} (steps {self.first} {end})"


def phases(optim: OptimConfig, train_steps: int) -> tuple[Phase, ...]:
    """The stretches of a schedule that has passed its rules, in order; none is empty."""
    found = [phase for phase in _all(optim, train_steps) if phase.stop is None or phase.stop > phase.first]
    return tuple(found)


def phase_at(optim: OptimConfig, step: int, train_steps: int) -> Phase:
    """The stretch that step `step` belongs to."""
    return next(p for p in phases(optim, train_steps) if p.stop is None or step < p.stop)


def is_constant_at(optim: OptimConfig, step: int, train_steps: int) -> bool:
    """Whether weights after `step` steps come from the constant phase: it goes on, or it ends there."""
    constant = constant_phase(optim, train_steps)
    return (
        constant is not None and constant.first <= step and (constant.stop is None or step <= constant.stop)
    )


def constant_phase(optim: OptimConfig, train_steps: int) -> Phase | None:
    """The constant stretch of a schedule that has one."""
    return next((p for p in phases(optim, train_steps) if p.name == CONSTANT), None)


def describe_schedule(optim: OptimConfig, train_steps: int) -> str:
    """One line: every stretch with its steps, and the rates between them."""
    parts = []
    for phase in phases(optim, train_steps):
        rate = learning_rate(optim, phase.first, train_steps)
        parts.append(f"{phase.name} from step {phase.first} at {rate:.3g}")
    return f"learning rate: {optim.schedule}; {', '.join(parts)}"


def _all(optim: OptimConfig, train_steps: int) -> Iterator[Phase]:
    warm, end = optim.warmup_steps, decay_end(optim, train_steps)
    yield Phase("warm-up", 0, warm)
    if optim.schedule == "constant":
        yield Phase(CONSTANT, warm, None)
    elif optim.schedule == "inverse_sqrt":
        yield Phase("decay", warm, None)
    elif optim.schedule == "cosine":
        yield Phase("decay", warm, max(end, warm))
        yield Phase(DECAYED, max(end, warm), None)
    else:
        cool = warm + (optim.cooldown_steps if optim.schedule == "infinite" else 0)
        yield Phase("cool-down", warm, cool)
        if optim.anneal_steps == 0:
            yield Phase(CONSTANT, cool, None)
            return
        yield Phase(CONSTANT, cool, end - optim.anneal_steps)
        yield Phase("decay", end - optim.anneal_steps, end)
        yield Phase(DECAYED, end, None)
