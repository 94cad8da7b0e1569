"""The best checkpoint of a run that the forgetting monitor may end, or has ended.

Place in the flow: `forgetting.action: stop_and_keep_best`, after every save and at the end. Imports no torch.
Invariant: chosen by the rule of `cptron select`, from the same numbers.
"""

from __future__ import annotations

from pathlib import Path

from cptron.checkpoint.marks import mark_only
from cptron.errors import CheckpointError, CptronError
from cptron.selection.candidates import survey
from cptron.selection.rules import Rule, choose

BEST = "best"


def mark_best_so_far(run: Path, epsilon_nats: float) -> int | None:
    """The same while the run goes on; None where nothing can be compared, as where its suites came after its step 0:
    that is no reason to end a run. Raises `CheckpointError` where the mark cannot be written."""
    try:
        step = _best_step(run, epsilon_nats)
    except CptronError:
        return None
    mark_only(run / "checkpoints", {step}, BEST)
    return step


def mark_best(run: Path, epsilon_nats: float) -> int:
    """Mark the best checkpoint that the run goes on with and return its step: of those within epsilon the one that has
    learned most; where none is, the one that is nearest. Raises `CheckpointError` where none was evaluated."""
    step = _best_step(run, epsilon_nats)
    mark_only(run / "checkpoints", {step}, BEST)
    return step


def _best_step(run: Path, epsilon_nats: float) -> int:
    there = {item.name: item for item in survey([run]).candidates if not item.is_left}
    if not there:
        raise CheckpointError(
            f"no checkpoint of {run} has an evaluation of old data; save at the steps that are evaluated"
        )
    choice = choose(Rule(epsilon_nats=epsilon_nats), [item.point for item in there.values()])
    best = choice.chosen[0] if choice.chosen else choice.nearest
    assert best is not None, "one of several is chosen or nearest"
    return there[best.name].step
