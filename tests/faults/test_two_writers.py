"""Two starts in one run directory: the second is refused, on all its ranks, and the first never notices."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import rank_calls
from commands import call, cptron, error_lines, records, snapshot, started, steps
from tiny_world import ONE, Layout, World

from cptron.checkpoint.layout import list_checkpoints
from cptron.checkpoint.run_lock import LOCK, sole_writer
from cptron.testing import run_ranks


@pytest.mark.more
def test_a_live_run_keeps_others_out(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """While it trains; when it is killed its lock is gone with it, and the same command goes on."""
    run = tmp_path / "run"
    words = cptron("train", world.config, f"run.dir={run}", "checkpoint.every_steps=4", "train.steps=2000")
    with started(words) as process:
        deadline = time.monotonic() + 240
        while not list_checkpoints(run / "checkpoints"):
            assert time.monotonic() < deadline and process.poll() is None, "the run never saved"
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        before = snapshot(run)
        for extra in ([], ["parallel.local_ranks=2"]):
            done = call([*words, *extra], 240)
            assert done.returncode == 2
            (line,) = error_lines(done.stderr)
            assert f"run.dir={run} is being written by pid {process.pid} on host " in line
        assert snapshot(run) == before
        process.kill()
        process.wait(timeout=120)
    assert (run / LOCK).exists()
    newest = list_checkpoints(run / "checkpoints")[-1][0]
    goal = max(20, newest + 4)
    world.trained(run, ONE, f"train.steps={goal}")
    assert [record["step"] for record in records(run, "start")] == [0, newest]
    assert steps(run)[:20] == steps(whole_runs[ONE])[:20]
    assert not (run / LOCK).exists()


def train_unwarned(config: str, overrides: list[str]) -> rank_calls.Outcome:
    """Train where another writer comes between the plan and the lock."""
    from cptron.train import preflight

    refuse, preflight.refuse_other_writer = preflight.refuse_other_writer, lambda run: None
    try:
        return rank_calls.train(config, overrides)
    finally:
        preflight.refuse_other_writer = refuse


def test_all_ranks_are_refused_alike(world: World, tmp_path: Path) -> None:
    """Only rank 0 asks for the lock; nothing is made."""
    run = tmp_path / "run"
    with sole_writer(run):
        before = snapshot(run)
        outcomes = run_ranks(train_unwarned, 2, str(world.config), [f"run.dir={run}"])
        assert snapshot(run) == before
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].error.startswith(f"ConfigError: run.dir={run} is being written by pid ")
    assert not run.exists()


def train_on_a_moved_run(config: str, overrides: list[str], newer: str) -> rank_calls.Outcome:
    """Train where the writer before ends, with a last save, between the plan and the lock."""
    from cptron.train import main

    planned = main.preflight

    def plan_and_save(*words: object) -> object:
        plan = planned(*words)  # type: ignore[arg-type]
        target = Path(overrides[0].removeprefix("run.dir=")) / "checkpoints" / Path(newer).name
        shutil.copytree(newer, target)
        return plan

    main.preflight = plan_and_save  # type: ignore[assignment]
    try:
        return rank_calls.train(config, overrides)
    finally:
        main.preflight = planned


def test_a_checkpoint_that_came_after_the_plan(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Is not overlooked: the start is refused rather than going on from the older one."""
    run, whole = tmp_path / "run", whole_runs[ONE]
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    newer = str(whole / "checkpoints" / "step_00000020")
    (outcome,) = run_ranks(
        train_on_a_moved_run, 1, str(world.config), [f"run.dir={run}"], newer, timeout_s=120
    )
    assert outcome.error.startswith(
        f"CheckpointError: run.dir={run} has changed while this start was planned"
    )
    assert [record["step"] for record in records(run, "start")] == [0]


def test_what_a_killed_start_leaves_is_no_other_run(world: World, tmp_path: Path) -> None:
    """A start that dies while it loads leaves a lock file alone. If that was on another host, it is said: locks of some
    file systems do not reach so far."""
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text("pid 1 on host gone since then\n")
    (outcome,) = world.train(run, ONE, "train.steps=1", "eval.at_start=false", "optim.warmup_steps=0")
    assert not outcome.error
    assert f"run.dir={run} has a lock that pid 1 on host gone since then has left" in outcome.stdout
