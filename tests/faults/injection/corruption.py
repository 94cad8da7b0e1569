"""Damage in the files of a checkpoint: found by whoever verifies it, and passed over by a resume.

Place in the flow: a fault of `catalogue`. Invariant: the checkpoints that differ from what was written are told apart
by the harness itself, byte by byte; the project's own verification must name exactly those.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from faults.injection.damage import KINDS, contents, damage
from faults.injection.ground import LAYOUTS, resumed_step
from faults.injection.kills import check_curve
from faults.injection.trials import Told, Trial

from cptron.checkpoint.layout import list_checkpoints, read_manifest
from cptron.errors import CheckpointError

RESUME_EVERY = 10
"""Every so many trials a run is resumed; the others only verify."""


def corrupt(trial: Trial) -> Told:
    """Damage the newest checkpoint of a finished run, in one way after the other."""
    kind = list(KINDS)[trial.number % len(KINDS)]
    layout = LAYOUTS[trial.number // RESUME_EVERY % len(LAYOUTS)]
    calm = trial.ground.undisturbed(layout)
    shutil.copytree(calm.run, trial.run)
    checkpoints = trial.run / "checkpoints"
    done = damage(trial.draw, checkpoints, kind)
    damaged, sound = _compare(calm.run / "checkpoints", checkpoints)
    assert damaged and sound, f"{done}: damaged {damaged}, sound {sound}"
    for _, directory in list_checkpoints(checkpoints):
        found = problems(directory)
        assert bool(found) == (directory.name in damaged), (
            f"{done}; {directory.name}: {found or 'nothing was found'}"
        )
    if trial.number % RESUME_EVERY:
        return Told(kind, detected=True)
    said = trial.ground.finish(trial.run, layout).text()
    for name in damaged:
        assert "passed over: " in said and name in said, f"{done}, but the resume did not name {name}"
    step, newest = resumed_step(trial.run), max(sound)
    assert step == newest, f"{done}; resumed from step {step}, but step {newest} was sound"
    check_curve(trial.run, calm)
    return Told(kind, detected=True, lost_steps=len(calm.curve[0]) - newest)


def _compare(pristine: Path, checkpoints: Path) -> tuple[list[str], list[int]]:
    """Names of checkpoints that are not what was written under their names, and steps of those that are."""
    damaged, sound = [], []
    for step, directory in list_checkpoints(checkpoints):
        written = pristine / directory.name
        if written.exists() and contents(written) == contents(directory):
            sound.append(step)
        else:
            damaged.append(directory.name)
    return damaged, sound


def problems(directory: Path) -> list[str]:
    """What verification finds wrong with a checkpoint."""
    try:
        read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    return []
