"""Asynchronous saves: the checkpoints of synchronous ones, in order, and nothing silent when one fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import rank_calls
from commands import evals, steps
from tiny_world import SHORT, Layout, World

from cptron.checkpoint.layout import list_checkpoints, read_manifest
from cptron.checkpoint.verify import damage
from cptron.runtime.pace import SAVE
from cptron.testing import run_ranks

ASYNC = "checkpoint.asynchronous=true"
OTHERS = [Layout(1), Layout(2), Layout(2, pp=2)]


@pytest.mark.parametrize(
    "layout",
    [Layout(2, tp=2), *(pytest.param(layout, marks=pytest.mark.more) for layout in OTHERS)],
    ids=str,
)
def test_the_checkpoints_are_the_same(layout: Layout, world: World, tmp_path: Path) -> None:
    """Saved at each step, so that each save meets the one before: to the byte those of a run that waited; the losses
    too; and a resume from one of them goes on."""
    runs = [
        world.trained(tmp_path / name, layout, *SHORT, "checkpoint.every_steps=1", *words)
        for name, words in (("waits", []), ("goes_on", [ASYNC]))
    ]
    assert steps(runs[0]) == steps(runs[1]) and evals(runs[0]) == evals(runs[1])
    one, other = ([read_manifest(path) for _, path in list_checkpoints(run / "checkpoints")] for run in runs)
    assert [manifest.step for manifest in other] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(one, other, strict=True):
        for files in (ours.files, theirs.files):
            del files["shards/.metadata"]  # a pickle, which depends on what objects torch shares
        assert ours.files == theirs.files and ours.checksums == theirs.checksums
        assert ours.metrics == theirs.metrics
    assert not list((runs[1] / "checkpoints").glob(".*"))
    assert all(damage(path) == [] for _, path in list_checkpoints(runs[1] / "checkpoints"))


def train_noting_phases(config: str, overrides: list[str]) -> tuple[rank_calls.Outcome, set[str]]:
    """Train; also where the ranks say that they are while a checkpoint is published."""
    from cptron.train.save import Saver

    publish, phases = Saver._publish, set()

    def note_and_publish(self: Saver, *words: Any) -> Path:
        phases.add(self._run.session.pace.entered[0])
        return publish(self, *words)

    Saver._publish = note_and_publish  # type: ignore[method-assign]
    try:
        return rank_calls.train(config, overrides), phases
    finally:
        Saver._publish = publish  # type: ignore[method-assign]


def test_to_publish_is_no_part_of_a_step(world: World, tmp_path: Path) -> None:
    """It writes what the ranks have in common and deletes old checkpoints, which may take longer than a step may."""
    words = [
        *SHORT,
        ASYNC,
        f"run.dir={tmp_path / 'run'}",
        "data.valid=[]",
        "eval.every_steps=0",
        "eval.at_start=false",
    ]
    ((outcome, phases),) = run_ranks(train_noting_phases, 1, str(world.config), words)
    assert (outcome.error, phases) == ("", {SAVE})


def train_with_dying_writer(config: str, overrides: list[str], rank: int) -> rank_calls.Outcome:
    """Train; the process behind one rank is killed when it gets its second save."""
    from cptron.checkpoint.background import BackgroundWriter
    from cptron.runtime.launcher import launched_ranks

    start, starts = BackgroundWriter.start, []
    ranks = launched_ranks()
    assert ranks is not None

    def kill_and_start(self: BackgroundWriter, *words: object) -> None:
        starts.append(1)
        if ranks.rank == rank and len(starts) == 2:
            os.kill(self._process.pid, signal.SIGKILL)
        start(self, *words)  # type: ignore[arg-type]

    BackgroundWriter.start = kill_and_start  # type: ignore[method-assign]
    try:
        return rank_calls.train(config, overrides)
    finally:
        BackgroundWriter.start = start  # type: ignore[method-assign]


def test_a_lost_writer_ends_the_run_at_the_next_step(world: World, tmp_path: Path) -> None:
    """On all ranks, with the reason; the checkpoint before it is whole, and the same command goes on from there."""
    run = tmp_path / "run"
    words = [*SHORT, ASYNC, "checkpoint.every_steps=2", f"run.dir={run}"]
    outcomes = run_ranks(train_with_dying_writer, 2, str(world.config), words, 1, timeout_s=240)
    for outcome in outcomes:
        assert outcome.error.startswith("CheckpointError: cannot write")
        assert "ended with exit code -9" in outcome.error and "checkpoint.asynchronous=false" in outcome.error
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [2]
    assert [record["step"] for record in steps(run)][-1] in (4, 5, 6)
    world.trained(run, Layout(2), *words)
    whole = world.trained(tmp_path / "whole", Layout(2), *SHORT)
    assert steps(run)[-4:] == steps(whole)[-4:]
