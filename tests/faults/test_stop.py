"""Runs that stop before their time is over: saved, on all ranks after the same step, with exit code 75."""

from __future__ import annotations

import importlib
import os
import re
import time
from pathlib import Path
from unittest import mock

import rank_calls
from commands import records, steps
from tiny_world import Layout, World

from cptron.checkpoint.layout import list_checkpoints
from cptron.errors import STOPPED_EXIT_CODE
from cptron.runtime.deadline import JOB_END
from cptron.testing import run_ranks

NO_EVALUATION = ("eval.at_start=false", "train.steps=5000", "checkpoint.every_steps=0")


def train_timed(config: str, overrides: list[str]) -> tuple[rank_calls.Outcome, float]:
    """Train; also the seconds it took, without those of imports."""
    importlib.import_module("cptron.train.main")
    start_s = time.monotonic()
    return rank_calls.train(config, overrides), time.monotonic() - start_s


def test_time_limit(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """Within the limit; the same command with more time goes on to the curve of a run that was never stopped."""
    layout, run = Layout(2), tmp_path / "run"
    limit = ("runtime.time_limit_minutes=2", "runtime.stop_margin_s=117")
    timed = run_ranks(train_timed, 2, str(world.config), [f"run.dir={run}", *NO_EVALUATION, *limit])
    assert max(seconds for _, seconds in timed) < 120
    assert [(outcome.error, outcome.code) for outcome, _ in timed] == [("", STOPPED_EXIT_CODE)] * 2
    (stop,) = records(run, "stop")
    assert stop["reason"] == f"stopped by runtime.time_limit_minutes after step {stop['step']}"
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [stop["step"]]
    assert steps(run)[-1]["step"] == stop["step"] < 5000
    if steps(run)[-1]["step"] < 20:
        world.trained(run, layout)
    assert steps(run)[:20] == steps(whole_runs[layout])


def train_in_a_job(config: str, overrides: list[str], left_s: list[float]) -> rank_calls.Outcome:
    """Train in a job that ends in so many seconds by this rank's clock."""
    end_s = time.time() + left_s[int(os.environ["RANK"])]
    with mock.patch.dict(os.environ, {JOB_END: str(int(end_s))}):
        return rank_calls.train(config, overrides)


def test_end_of_the_job(world: World, tmp_path: Path) -> None:
    """The scheduler's limit, said at the start and kept by both ranks; only rank 0's clock counts."""
    run = tmp_path / "run"
    words = [
        f"run.dir={run}",
        *NO_EVALUATION,
        "data.valid=[]",
        "eval.every_steps=0",
        "runtime.stop_margin_s=600",
    ]
    finished = run_ranks(train_in_a_job, 2, str(world.config), [*words, "train.steps=4"], [3600.0, 300.0])
    assert [(outcome.error, outcome.code) for outcome in finished] == [("", 0)] * 2
    said = r"the job ends in (\d+) min \(SLURM_JOB_END_TIME\): the run stops and saves before"
    (minutes,) = re.findall(said, finished[0].stdout)
    assert 40 <= int(minutes) <= 60, "of an hour, less what the start took"
    outcomes = run_ranks(train_in_a_job, 2, str(world.config), words, [604.0, 3600.0], timeout_s=240)
    assert [(outcome.error, outcome.code) for outcome in outcomes] == [("", STOPPED_EXIT_CODE)] * 2
    stop = records(run, "stop")[-1]
    assert stop["reason"] == f"stopped by the end of the job's time after step {stop['step']}"
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [4, stop["step"]]
