"""SIGKILL, at an instant drawn over the whole of a run, to all ranks or to one: the same command goes on as if nothing
had been.

Place in the flow: the faults of `catalogue` that end processes. Invariant: what the run computes after a resume is
compared with the undisturbed run to the bit, and it goes on from the newest checkpoint that was published.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from faults.injection.checks import (
    check_lost,
    check_resume,
    chosen_options,
    lost_steps,
    start_over,
)
from faults.injection.ground import (
    LAYOUTS,
    Undisturbed,
    await_sight,
    newest_step,
    writing,
)
from faults.injection.ranks import Ranks
from faults.injection.trials import Told, Trial
from tiny_world import Layout

from cptron.checkpoint.layout import step_directory

OTHERS_END_S = 60.0
"""A rank whose neighbour was killed has ended by then, on a loaded machine too; what it took is measured."""
MEET_S = 90
"""Ranks that have not met wait for each other for `runtime.timeout_s`, which no launcher ends here."""

Instant = Callable[[Trial, Ranks, Path, Undisturbed], None]
"""Returns when the instant of the kill has come."""


def anywhere(trial: Trial, ranks: Ranks, run: Path, calm: Undisturbed) -> None:
    """Any instant from the start of the processes to their end, each as likely."""
    time.sleep(trial.draw.uniform(0, calm.duration_s))


def in_training(trial: Trial, ranks: Ranks, run: Path, calm: Undisturbed) -> None:
    """Any instant from the first step on."""
    await_sight(ranks, (run / "metrics.jsonl").exists)
    time.sleep(trial.draw.uniform(0, calm.duration_s - calm.loaded_s))


def in_a_save(trial: Trial, ranks: Ranks, run: Path, calm: Undisturbed) -> None:
    """Any instant of one of the saves."""
    step = trial.draw.choice(sorted(calm.saves))
    begin, end = calm.saves[step]
    await_sight(ranks, lambda: step in writing(run) or newest_step(run) >= step)
    time.sleep(trial.draw.uniform(0, end - begin))


def in_pruning(trial: Trial, ranks: Ranks, run: Path, calm: Undisturbed) -> None:
    """When a checkpoint has just been published, and an older one is being deleted."""
    step = trial.draw.choice(sorted(calm.saves)[-2:])
    published = step_directory(run / "checkpoints", step)
    await_sight(ranks, published.exists)
    time.sleep(trial.draw.uniform(0, 0.003))


def in_loading(trial: Trial, ranks: Ranks, run: Path, calm: Undisturbed) -> None:
    """Any instant before the first step."""
    time.sleep(trial.draw.uniform(0, calm.loaded_s))


def marks(run: Path) -> dict[str, tuple[int, int]]:
    """What tells, when it is new, what a run was doing: its metrics, and directories that are written or deleted."""
    paths = [run / "metrics.jsonl", *(run / "checkpoints").glob(".*")]
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def struck(run: Path, before: dict[str, tuple[int, int]]) -> str:
    """What a kill has hit, from what it left and what had been there before this start."""
    new = " ".join(name for name, mark in marks(run).items() if before.get(name) != mark)
    for name, meaning in ((".removing_", "pruning"), (".writing_", "saving"), ("metrics.jsonl", "training")):
        if name in new:
            return meaning
    return "loading"


def kill_all(trial: Trial) -> Told:
    """All ranks and all they have started at once; a third of the time the resume is killed while it loads, too."""
    layout = LAYOUTS[trial.number % len(LAYOUTS)]
    aim = trial.draw.choice([anywhere, anywhere, in_training, in_a_save, in_a_save, in_pruning])
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    while not (hit := _kill(trial, layout, options, calm, aim)):
        start_over(trial.run)
    lost = lost_steps(trial.run)
    check_lost(lost, options)
    while trial.draw.random() < 1 / 3:
        again = _kill(trial, layout, options, calm, in_loading)
        hit += f", then {again}" if again else ""
    check_resume(trial.ground, trial.run, layout, options, calm)
    return Told(hit, lost_steps=lost)


def _kill(trial: Trial, layout: Layout, options: Sequence[str], calm: Undisturbed, aim: Instant) -> str:
    """Kill a start of the run; returns what was hit, or nothing where the run ended before its instant."""
    before = marks(trial.run)
    with trial.ground.start(trial.run, layout, options) as ranks:
        aim(trial, ranks, trial.run, calm)
        ranks.kill()
        return struck(trial.run, before) if any(ranks.wait()) else ""


def kill_one(trial: Trial) -> Told:
    """One rank of two: the other must end by itself, soon; half the time what the rank has started lives on."""
    layout = LAYOUTS[1:][trial.number % (len(LAYOUTS) - 1)]
    aim = trial.draw.choice([anywhere, in_training, in_a_save])
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    victim = trial.draw.randrange(layout.world_size)
    alone = trial.draw.random() < 0.5
    while True:
        with ExitStack() as until_the_end:
            waiting = [*options, f"runtime.timeout_s={MEET_S}"]
            ranks = until_the_end.enter_context(trial.ground.start(trial.run, layout, waiting))
            aim(trial, ranks, trial.run, calm)
            ranks.signal(signal.SIGKILL, [victim]) if alone else ranks.kill([victim])
            killed_s = time.monotonic()
            met = (trial.run / "run.json").exists()
            codes = ranks.wait(OTHERS_END_S if met else MEET_S + OTHERS_END_S)
            if codes[victim] == -signal.SIGKILL:
                seconds = time.monotonic() - killed_s
                hit, lost = struck(trial.run, {}), lost_steps(trial.run)
                check_lost(lost, options)
                check_resume(trial.ground, trial.run, layout, options, calm)
                name = "others_end_s" if met else "others_end_before_all_met_s"
                return Told(hit, lost_steps=lost, measured={name: seconds})
        start_over(trial.run)  # it ended before its kill
