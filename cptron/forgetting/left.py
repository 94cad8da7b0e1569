"""What a rollback of the monitor leaves behind: moved to `RUN/left/ATTEMPT/`, never deleted.

Place in the flow: `train` asks what is left behind when it looks for the checkpoint to go on from, and moves it when
the run directory is its own; whoever chooses among checkpoints finds it there. Imports no torch. Invariant: what is
left behind follows from the journal and from the attempt that each thing was made in, so that a move that was cut off
is finished at the next start, and nothing of a later attempt is ever moved.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.marks import one_at_a_time
from cptron.durable import fsync_path, make_directory
from cptron.errors import CheckpointError
from cptron.forgetting.evaluation import FOLDER, list_evaluations, read_evaluation
from cptron.forgetting.journal import Verdict

LEFT = "left"


def is_left(step: int, attempt: int, verdicts: Sequence[Verdict]) -> bool:
    """Whether what was made after `step` steps of an attempt lies behind a rollback."""
    return any(
        verdict.action == "rollback" and step > verdict.to_step and attempt < verdict.reaction.attempt
        for verdict in verdicts
    )


def set_aside(run: Path, verdicts: Sequence[Verdict]) -> None:
    """Move all that is left behind. Raises `CheckpointError`."""
    if not any(verdict.action == "rollback" for verdict in verdicts):
        return
    try:
        checkpoints = run / "checkpoints"
        with one_at_a_time(checkpoints):
            for step, path in layout.list_checkpoints(checkpoints):
                try:
                    attempt = layout.read_manifest(path).attempt
                except CheckpointError:
                    continue  # damaged: nothing goes on from it
                if is_left(step, attempt, verdicts):
                    _move(path, run / LEFT / str(attempt))
        for step, path in list_evaluations(run).items():
            attempt = read_evaluation(path).attempt
            if is_left(step, attempt, verdicts):
                _move(path, run / LEFT / str(attempt) / FOLDER)
    except OSError as error:
        raise CheckpointError(
            f"what a rollback left behind in {run} cannot be moved to {LEFT}/ ({error}); make it writable"
        ) from None


def _move(path: Path, folder: Path) -> None:
    """Under a name that is free: the same attempt may have been made twice, after damage to a checkpoint."""
    make_directory(folder)
    target, number = folder / path.name, 1
    while target.exists():
        number += 1
        target = folder / f"{path.name}.{number}"
    os.rename(path, target)
    fsync_path(folder)
    fsync_path(path.parent)
