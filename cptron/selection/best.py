"""The best checkpoint of a run that the forgetting monitor may end, or has ended.

Place in the flow: `forgetting.action: stop_and_keep_best`, after every save and at the end. Imports no torch.
Invariant: chosen by the rule of `cptron select`, from the same numbers.
"""

from __future__ import annotations

from pathlib import Path

from cptron.checkpoint.marks import mark_only
from cptron.errors import CheckpointError
from cptron.selection.candidates import survey
from cptron.selection.rules import Rule, choose

BEST = "best"


def mark_best(run: Path, epsilon_nats: float) -> int:
    """Mark the best checkpoint that the run goes on with and return its step: of those within epsilon the one that has
    learned most; where none is, the one that is nearest. Raises `CheckpointError` where none was evaluated."""
    there = {item.name: item for item in survey([run]).candidates if not item.is_left}
    if not there:
        raise CheckpointError(
            f"no checkpoint of {run} has an evaluation of old data; save at the steps that are evaluated"
        )
    choice = choose(Rule(epsilon_nats=epsilon_nats), [item.point for item in there.values()])
    best = choice.chosen[0] if choice.chosen else choice.nearest
    assert best is not None, "one of several is chosen or nearest"
    step = there[best.name].step
    mark_only(run / "checkpoints", {step}, BEST)
    return step
