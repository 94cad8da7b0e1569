"""Hooks: how everything beside the optimizer step takes part in a run.

Place in the flow: the loop calls each hook at fixed points, on every rank, in the same order. Invariant: a
hook acts on a run only through the `Action` it returns, and every rank's hooks return the same action.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cptron.train.setup import Run

Record = dict[str, Any]


class Action(IntEnum):
    """What the loop does next; of several answers the greatest wins."""

    CONTINUE = 0
    SAVE = 1
    SAVE_AND_STOP = 2


class Hook:
    """Does nothing; override what is needed."""

    def on_start(self, run: Run) -> None:
        """Before the first step, after weights are loaded and proven."""

    def on_step(self, run: Run, record: Record) -> Action:
        """After each optimizer step, with its metrics."""
        return Action.CONTINUE

    def on_drop(self, run: Run) -> None:
        """After a global batch was drawn that is not trained on; the state counts it."""

    def on_guard(self, run: Run, record: Record) -> None:
        """After the guards found or did something, with what and why. `event` is `log`, `skip`, `rollback` (the state
        is now that of the checkpoint), or `drop` (the last batch that a rollback drops was passed)."""

    def on_mix(self, run: Run, record: Record) -> None:
        """After an online mixer has set new shares."""

    def on_straggler(self, run: Run, record: Record) -> None:
        """After a rank was found to be slower than those that do the same work, or no longer is."""

    def on_eval(self, run: Run, record: Record) -> Action:
        """After the validation sets were evaluated."""
        return Action.CONTINUE

    def on_rewind(self, run: Run, why: str) -> None:
        """After the forgetting monitor took the run back to a checkpoint: the state is now that one's."""

    def on_save(self, run: Run, directory: Path) -> None:
        """After a checkpoint was published."""

    def on_stop(self, run: Run, reason: str) -> None:
        """After the last step; not called when the run fails."""

    def close(self) -> None:
        """Release what the hook holds; always called."""
