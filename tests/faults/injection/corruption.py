"""Damage in the files of a checkpoint: found by whoever verifies it, and passed over by a resume.

Place in the flow: a fault of `catalogue`. Invariant: the checkpoints that differ from what was written are told apart
by the harness itself, byte by byte; the project's own verification must name exactly those.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from faults.injection.checks import check_curve, check_failure
from faults.injection.damage import KINDS, contents, damage
from faults.injection.ground import LAYOUTS, resumed_step
from faults.injection.trials import Told, Trial
from tiny_world import Layout

from cptron.checkpoint import verify
from cptron.checkpoint.layout import list_checkpoints, step_directory

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
        found = verify.damage(directory)
        assert bool(found) == (directory.name in damaged), (
            f"{done}; {directory.name}: {found or 'nothing was found'}"
        )
    if trial.number % RESUME_EVERY:
        return Told(kind, detected=True)
    newest = max(sound)
    if trial.number // RESUME_EVERY % 4 == 3:
        _stops(trial, layout, damaged)
    said = trial.ground.finish(trial.run, layout).text()
    newer = [name for name in damaged if name > step_directory(checkpoints, newest).name]
    for name in newer:
        assert "passed over: " in said and name in said, f"{done}, but the resume did not name {name}"
    step = resumed_step(trial.run)
    assert step == newest, f"{done}; resumed from step {step}, but step {newest} was sound"
    check_curve(trial.run, calm)
    return Told(kind, detected=True, lost_steps=len(calm.curve[0]) - newest)


def _stops(trial: Trial, layout: Layout, damaged: list[str]) -> None:
    """Where it is told to, the resume stops at the damage and changes nothing."""
    before = contents(trial.run)
    with trial.ground.start(trial.run, layout, ["checkpoint.on_damage=stop"]) as ranks:
        codes = ranks.wait()
    check_failure(ranks, codes, max(damaged))
    assert contents(trial.run) == before, "a refused resume has changed the run"


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
