"""Every layout resumed under every other: the next ten steps are those of the run that was not interrupted.

Place in the flow: a row of the full form; the tests try some of the pairs on warm ranks. Invariant: a resume under the
same layout gives the same bits; under another, every value within 1e-4.
"""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

from commands import assert_close, evals, steps
from faults.injection.ground import resumed_step
from faults.injection.trials import Told, Trial
from tiny_world import ONE, Layout

from cptron.checkpoint.layout import list_checkpoints

SAVED_STEP = 2
NEXT_STEPS = 10
LAYOUTS = [
    ONE,
    Layout(2),
    Layout(2, tp=2),
    Layout(4, tp=2, sequence_parallel=False),
    Layout(2, pp=2),
    Layout(2, pp=2, virtual_stages=2),
    Layout(2, cp=2),
    Layout(4, tp=2, cp=2),
    Layout(4, tp=2, pp=2),
]
PAIRS = list(product(LAYOUTS, LAYOUTS))
SETTINGS = [
    f"train.steps={SAVED_STEP + NEXT_STEPS}",
    "train.global_batch_size=4",
    "optim.warmup_steps=1",
    "optim.decay_steps=12",
    "eval.every_steps=0",
    "eval.at_start=false",
    "data.valid.domain.max_tokens=300",
    "data.valid.general.max_tokens=300",
    f"checkpoint.every_steps={SAVED_STEP}",
    "checkpoint.keep_last=0",
]


def interrupt(whole: Path, target: Path) -> Path:
    """Copy of a whole run as a crash leaves it when only its first checkpoint had been saved."""
    shutil.copytree(whole, target)
    for step, directory in list_checkpoints(target / "checkpoints"):
        if step > SAVED_STEP:
            shutil.rmtree(directory)
    return target


def compare(run: Path, whole: Path, same_layout: bool) -> float:
    """Check the ten steps after the resume and the evaluation at their end; returns the largest relative difference of
    a loss."""
    assert resumed_step(run) == SAVED_STEP
    ours, theirs = steps(run, after=SAVED_STEP), steps(whole, after=SAVED_STEP)
    assert len(theirs) == NEXT_STEPS
    if same_layout:
        assert ours == theirs and evals(run) == evals(whole), "other bits under the same layout"
    assert_close(ours, theirs)
    assert_close(evals(run), evals(whole))
    loss = "loss_nats_per_token"
    return max(abs(one[loss] / other[loss] - 1) for one, other in zip(ours, theirs, strict=True))


def change_layout(trial: Trial) -> Told:
    """Saved under one layout of a pair, resumed under the other."""
    before, after = PAIRS[trial.number]
    whole = trial.ground.undisturbed(before, SETTINGS).run
    interrupt(whole, trial.run)
    trial.ground.finish(trial.run, after, SETTINGS)
    worst = compare(trial.run, whole, before == after)
    hit = "the same layout" if before == after else "another layout"
    return Told(hit, measured={f"relative difference of a loss under {hit}": worst})
