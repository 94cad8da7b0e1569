"""Back to a checkpoint, in the running processes.

Place in the flow: `guards` and `monitor` call it where the policy is `rollback`. Invariant: what follows is what a
resume from that checkpoint would do; the journal has it before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cptron.checkpoint import layout
from cptron.errors import TrainingError
from cptron.runtime.dist import agree, from_main
from cptron.runtime.pace import START
from cptron.train.preflight import Plan, settled
from cptron.train.proof import proven_plan
from cptron.train.resume import stopped_by_damage
from cptron.train.setup import Run, load_again
from cptron.train.state import read_state


class Target(NamedTuple):
    """A checkpoint of this run that is proven."""

    plan: Plan
    step: int
    batches_drawn: int


def newest_checkpoint(run: Run, why: str) -> Target:
    """The newest complete one that is not damaged, the same on every rank; collective. Raises a `CptronError` where
    there is none: the weights that the run began with are no checkpoint of its own; and where a newer one is damaged
    and the configuration says to stop."""

    def find() -> tuple[Path, list[str]]:
        checkpoints = run.directory / "checkpoints"
        newest, problems = layout.newest_complete(checkpoints)
        if problems and run.config.checkpoint.on_damage == "stop":
            raise stopped_by_damage(problems[0])
        if newest is None:
            raise TrainingError(
                f"{why}; a rollback needs a checkpoint, and {checkpoints} has none ({'; '.join(problems) or 'empty'}): "
                "lower checkpoint.every_steps, or use the policy skip until the first is saved"
            )
        return newest, list(problems)

    return proven_target(run, *from_main(find))


def proven_target(run: Run, checkpoint: Path, problems: Sequence[str] = ()) -> Target:
    """This checkpoint of the run, or an older one where it is damaged; collective. Raises a `CptronError`."""
    with run.session.pace.during(START):
        notes = tuple(f"passed over: {problem}" for problem in problems)
        found = replace(run.plan, resume_from=checkpoint, accepted=(), notes=notes)
        proven = proven_plan(found, run.config)
        plan = agree(lambda: settled(proven, run.config))
        directory = plan.resume_from
        assert directory is not None
        saved = agree(lambda: read_state(directory / layout.STATE))
    return Target(plan, saved["step"], saved["batches_drawn"])


def roll_back(run: Run, target: Target) -> None:
    """Load weights, optimizer, state and position in the data; collective."""
    with run.session.pace.during(START):
        load_again(run, target.plan)
    assert run.state.batches_drawn == target.batches_drawn
