"""What of an optimizer a checkpoint holds beside tensors: the number of steps taken, nothing else.

Place in the flow: `checkpoint.sharded` asks for it at a save and sets it at a load. Rates and multipliers are the
configuration's, whatever they were when the checkpoint was written; so parameter groups need no pairing, and may change
at a resume. Invariant: after `set_step` every group and every parameter is at that step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def make_state(optimizer: Any) -> None:
    """Make the tensors of state where the inner optimizer makes them at its first step, so that a load has where to
    write."""
    for part in optimizer.chained_optimizers:
        if hasattr(part, "gbuf_ranges") and not part.optimizer.state:
            part.load_state_dict(part.state_dict())


def step_of(optimizer: Any) -> int | None:
    """Steps taken; None for an optimizer that does not count them."""
    steps = {int(holder["step"]) for holder in _holders(optimizer) if holder.get("step") is not None}
    assert len(steps) <= 1, f"all parameters are updated together, but were at {sorted(steps)}"
    return steps.pop() if steps else None


def set_step(optimizer: Any, step: int | None) -> None:
    """Go on after `step` steps."""
    if step is None:
        return
    for holder in _holders(optimizer):
        if torch.is_tensor(holder.get("step")):
            holder["step"].fill_(step)
        else:
            holder["step"] = step


def _holders(optimizer: Any) -> Iterator[dict[str, Any]]:
    """Whatever counts steps: parameter groups, or with torch's optimizers the state of each parameter."""
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        states = [state for state in inner.state.values() if "step" in state]
        yield from states or inner.param_groups
