"""A disk that is full or cannot be written: the checkpoints before stay, one line says what is wrong, and the same
command goes on when it is mended.

Place in the flow: faults of `catalogue`. Invariant: after the failure every published checkpoint verifies, and after
the repair the curve is that of the undisturbed run.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from faults.injection.checks import check_curve, check_failure, check_kept, chosen_options, start_over
from faults.injection.damage import contents
from faults.injection.ground import (
    EVERY_STEPS,
    LAYOUTS,
    STEPS,
    await_sight,
    last_step,
    newest_step,
    resumed_step,
    writing,
)
from faults.injection.mounts import fill, read_only, small_disk
from faults.injection.trials import Told, Trial

from cptron.checkpoint.layout import step_directory

PAGE_BYTES = 4096
FAILURE_S = 240.0
"""A run that cannot write has ended by then."""


def fill_disk(trial: Trial) -> Told:
    """Room runs out, before the start or in the middle of the run, by an amount drawn over its whole range."""
    layout = LAYOUTS[trial.number % 4]
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    checkpoint_bytes = sum(map(len, contents(max((calm.run / "checkpoints").iterdir())).values()))
    least, most = math.log(PAGE_BYTES), math.log(2 * checkpoint_bytes)
    with small_disk(trial.directory / "disk", 16 * checkpoint_bytes) as disk:
        run = disk / "run"
        while True:
            step = trial.draw.choice([0, 0, *range(1, STEPS - 1)])
            leave_bytes = int(math.exp(trial.draw.uniform(least, most)))
            with ExitStack() as files:
                if step == 0:
                    files.callback(fill(disk, leave_bytes).unlink)
                ranks = files.enter_context(trial.ground.start(run, layout, options))
                if step:
                    await_sight(ranks, partial(_past, run, step))
                    files.callback(fill(disk, leave_bytes).unlink)
                codes = ranks.wait(FAILURE_S)
                if set(codes) != {0}:
                    check_failure(ranks, codes, "No space left", "make room or choose another")
                    where = unfinished(run)
                    break
            shutil.rmtree(run)  # there was room enough
        lost = check_kept(run)
        trial.ground.finish(run, layout, options)
        check_curve(run, calm)
    return Told(where, detected=True, lost_steps=lost)


def _past(run: Path, step: int) -> bool:
    return last_step(run) >= step


def unfinished(run: Path) -> str:
    """What was being written when the disk was full, from what is there."""
    for step in writing(run):
        there = {path.name for path in (run / "checkpoints" / f".writing_step_{step:08d}").iterdir()}
        last = [name for name in ("manifest.json", "state.json", "shards") if name in there]
        return f"a save, at {last[0] if last else 'its begin'}"
    return "the start" if last_step(run) == 0 else "a record of the run"


def _file_as_working_directory(run: Path, step: int) -> ExitStack:
    path = step_directory(run / "checkpoints", step).with_name(f".writing_step_{step:08d}")
    return _file(path)


def _file_as_checkpoint(run: Path, step: int) -> ExitStack:
    return _file(step_directory(run / "checkpoints", step))


def _file(path: Path) -> ExitStack:
    path.write_text("in the way")
    undo = ExitStack()
    undo.callback(path.unlink, missing_ok=True)
    return undo


def _read_only_checkpoints(run: Path, step: int) -> ExitStack:
    undo = ExitStack()
    undo.enter_context(read_only(run / "checkpoints"))
    return undo


def _read_only_run(run: Path, step: int) -> ExitStack:
    undo = ExitStack()
    undo.enter_context(read_only(run))
    return undo


def _removed_checkpoints(run: Path, step: int) -> ExitStack:
    while (run / "checkpoints").exists():  # what is written meanwhile is in the way of its removal
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return ExitStack()


def _removed_run(run: Path, step: int) -> ExitStack:
    run.rename(run.with_name("removed"))
    return ExitStack()


OBSTACLES: dict[str, Callable[[Path, int], ExitStack]] = {
    "read-only checkpoints": _read_only_checkpoints,
    "a file where a checkpoint is written": _file_as_working_directory,
    "read-only run": _read_only_run,
    "a file where a checkpoint belongs": _file_as_checkpoint,
    "checkpoints removed": _removed_checkpoints,
    "run removed": _removed_run,
}
"""What is put in the way of a run that trains, before it saves the given step; leaving the context undoes it."""


def obstruct(trial: Trial) -> Told:
    """Something is put in the way of a run in the middle of its training. It goes on without a loss, or stops with one
    line; either way the same command ends with the right curve once the way is free."""
    name = list(OBSTACLES)[trial.number % len(OBSTACLES)]
    layout = LAYOUTS[trial.number % 4]
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    while True:
        step = trial.draw.randrange(EVERY_STEPS, STEPS - 1)
        with trial.ground.start(trial.run, layout, options) as ranks:
            await_sight(ranks, partial(_past, trial.run, step))
            await_sight(ranks, lambda: newest_step(trial.run) > 0)
            with OBSTACLES[name](trial.run, (step // EVERY_STEPS + 1) * EVERY_STEPS):
                codes = ranks.wait(FAILURE_S)
                stopped = set(codes) != {0}
                if stopped:
                    check_failure(ranks, codes, str(trial.run))
        if stopped or "removed" in name:
            break
        start_over(trial.run)  # the save was quicker
    lost = check_kept(trial.run) if stopped and "removed" not in name else None
    expected = newest_step(trial.run)
    trial.ground.finish(trial.run, layout, options)
    found = resumed_step(trial.run)
    assert found == expected, f"resumed from step {found}, not {expected}"
    check_curve(trial.run, calm)
    return Told(name, detected=stopped or None, lost_steps=lost)
