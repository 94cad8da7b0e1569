"""Interruptions that are not accidents: a scheduler's signal, another layout at the resume, clocks that jump, and a
second writer.

Place in the flow: faults of `catalogue`. Invariant: as for kills; and where the run had time to save, nothing is lost.
"""

from __future__ import annotations

import os
import signal
import time

from commands import assert_close
from faults.injection.checks import (
    check_curve,
    check_failure,
    check_lost,
    check_resume,
    chosen_options,
    lost_steps,
    start_over,
)
from faults.injection.ground import (
    EVERY_STEPS,
    LAYOUTS,
    STEPS,
    await_sight,
    curve,
    last_step,
    newest_step,
    resumed_step,
)
from faults.injection.kills import anywhere, in_a_save, in_training, struck
from faults.injection.trials import Told, Trial

from cptron.errors import STOPPED_EXIT_CODE

YEAR_S = 365 * 86400


def preempt(trial: Trial) -> Told:
    """SIGTERM or SIGUSR1 to one rank or to all, in training or in a save: all finish the step, save and end."""
    layout = LAYOUTS[trial.number % len(LAYOUTS)]
    aim = trial.draw.choice([in_training, in_a_save])
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    number = trial.draw.choice([signal.SIGTERM, signal.SIGUSR1])
    whom = trial.draw.choice([None, [trial.draw.randrange(layout.world_size)]])
    while True:
        with trial.ground.start(trial.run, layout, options) as ranks:
            await_sight(
                ranks, lambda: last_step(trial.run) > 0
            )  # before it a signal ends the process, as a kill does
            aim(trial, ranks, trial.run, calm)
            hit = struck(trial.run, {})
            ranks.signal(number, whom)
            signalled_s = time.monotonic()
            codes = ranks.wait()
        seconds = time.monotonic() - signalled_s
        if last_step(trial.run) < len(calm.curve[0]):
            break
        start_over(trial.run)  # it was at its end
    assert set(codes) == {STOPPED_EXIT_CODE}, (
        f"exit codes {codes}, not {STOPPED_EXIT_CODE}: {ranks.text()[-1500:]}"
    )
    assert lost_steps(trial.run) == 0, (
        f"stopped after step {last_step(trial.run)}, saved {newest_step(trial.run)}"
    )
    check_resume(trial.ground, trial.run, layout, options, calm)
    return Told(f"{number.name} in {hit}", detected=True, lost_steps=0, measured={"save_and_end_s": seconds})


def reshard(trial: Trial) -> Told:
    """Killed under one layout, resumed under another: the same values within 1e-4."""
    before = LAYOUTS[trial.number % len(LAYOUTS)]
    after = trial.draw.choice([layout for layout in LAYOUTS if layout != before])
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(before, options)
    while True:
        with trial.ground.start(trial.run, before, options) as ranks:
            await_sight(ranks, lambda: newest_step(trial.run) > 0)
            trial.draw.choice([in_training, in_a_save])(trial, ranks, trial.run, calm)
            ranks.kill()
            if any(ranks.wait()):
                break
        start_over(trial.run)
    lost, expected = lost_steps(trial.run), newest_step(trial.run)
    check_lost(lost, options)
    trial.ground.finish(trial.run, after, options)
    assert resumed_step(trial.run) == expected
    for ours, theirs in zip(curve(trial.run), calm.curve, strict=True):
        assert_close(ours, theirs)
    return Told(f"{before} to {after}", lost_steps=lost)


def jump_clock(trial: Trial) -> Told:
    """The clock of the wall jumps by up to a day as often as it is read, then files are dated up to a year off."""
    layout = LAYOUTS[trial.number % len(LAYOUTS)]
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    seed = trial.draw.randrange(1000)
    while True:
        with trial.ground.start(trial.run, layout, options, "jumping_clock", seed=seed) as ranks:
            trial.draw.choice([anywhere, in_a_save])(trial, ranks, trial.run, calm)
            ranks.kill()
            if any(ranks.wait()):
                break
        start_over(trial.run)
    lost = lost_steps(trial.run)
    check_lost(lost, options)
    for path in trial.run.rglob("*"):
        moved_s = time.time() + trial.draw.uniform(-YEAR_S, YEAR_S)
        os.utime(path, (moved_s, moved_s))
    expected = newest_step(trial.run)
    with trial.ground.start(trial.run, layout, options, "jumping_clock", seed=seed + 1) as ranks:
        codes = ranks.wait()
    assert set(codes) == {0}, f"ended with {codes}: {ranks.text()[-1500:]}"
    assert resumed_step(trial.run) == expected
    check_curve(trial.run, calm)
    return Told("clock", lost_steps=lost)


def two_writers(trial: Trial) -> Told:
    """The same command is started again while it loads or trains: one of the two writes, the other is refused."""
    layout = LAYOUTS[trial.number % 4]
    options = chosen_options(trial)
    calm = trial.ground.undisturbed(layout, options)
    moment = trial.draw.randrange(-1, EVERY_STEPS + 1)
    while True:
        with trial.ground.start(trial.run, layout, options) as first:
            if moment >= 0:
                await_sight(first, lambda: last_step(trial.run) >= moment)
            else:
                time.sleep(trial.draw.choice([0, trial.draw.uniform(0, calm.loaded_s)]))
            with trial.ground.start(trial.run, layout, options) as second:
                codes = first.wait(), second.wait()
        refused = [
            (ranks, found) for ranks, found in zip((first, second), codes, strict=True) if set(found) != {0}
        ]
        if refused:
            break
        assert resumed_step(trial.run) == STEPS, "two have written one run, and neither was refused"
        start_over(trial.run)  # the second came when the first had ended
    assert len(refused) == 1, f"exit codes {codes}: one of the two must write, the other be refused"
    check_failure(*refused[0], str(trial.run))
    check_curve(trial.run, calm)
    return Told("the second" if refused[0][0] is second else "the first", detected=True)
