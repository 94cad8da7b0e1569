"""What happens to one rank happens to all: an error stops every rank, and a request to stop is kept by every rank."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
import rank_calls
from commands import TORCHRUN, call, cptron, error_lines, records, started, steps
from tiny_world import Layout, World, tokenize

from cptron.checkpoint.layout import list_checkpoints
from cptron.testing import run_ranks

SCRIPT = """
import os, sys
from cptron.cli import main
wrong = ["start.checkpoint=/nonexistent/base"] if os.environ["RANK"] == "1" else []
sys.exit(main(["train", *sys.argv[1:], *wrong]))
"""


@pytest.mark.parametrize("poisoned_rank", [0, 1])
@pytest.mark.parametrize("layout", [Layout(2, tp=2), Layout(2, pp=2)], ids=str)
def test_nan_stops_every_rank_and_saves_nothing(
    layout: Layout, poisoned_rank: int, world: World, tmp_path: Path
) -> None:
    """One NaN in one weight of one rank: `TrainingError` everywhere, no step counted, no checkpoint."""
    words = [
        f"run.dir={tmp_path / 'run'}",
        *layout.overrides,
        "eval.at_start=false",
        "checkpoint.every_steps=1",
    ]
    outcomes = run_ranks(rank_calls.train_with_nan, 2, str(world.config), words, poisoned_rank, timeout_s=90)
    assert all(outcome.error.startswith("TrainingError") and "nan" in outcome.error for outcome in outcomes)
    assert records(tmp_path / "run", "step") == []
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_data_of_one_rank_too_short(world: World, tmp_path: Path) -> None:
    """An error that only one rank can see, after the ranks have joined, is raised on both."""
    corpus = tmp_path / "short.jsonl"
    corpus.write_text(json.dumps({"text": "index planner"}) + "\n")
    short = tokenize(corpus, world.hugging_face)
    common = [f"run.dir={tmp_path / 'run'}"]
    outcomes = run_ranks(
        rank_calls.train_each,
        2,
        str(world.config),
        [common, [*common, f"data.sources.domain.path={short}"]],
        timeout_s=60,
    )
    assert [outcome.error.startswith("DataError: source domain") for outcome in outcomes] == [True, True]
    assert outcomes[0].error == outcomes[1].error


def test_error_of_one_rank_before_the_ranks_join(world: World, tmp_path: Path) -> None:
    """Under torchrun the rank that waits for its neighbour is ended, within seconds."""
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    done = call([*TORCHRUN, script, world.config, f"run.dir={tmp_path / 'run'}"], 60)
    assert done.returncode != 0
    (line,) = error_lines(done.stderr)
    assert line.startswith("cptron: error [rank 1]: checkpoint /nonexistent/base does not exist")


def test_sigterm_to_one_rank_saves_and_stops_all(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Both ranks save after the same step and exit with 0; the run goes on to the same curve."""
    layout = Layout(2)
    run = tmp_path / "run"
    words = cptron("train", world.config, f"run.dir={run}", "parallel.local_ranks=2", "train.steps=5000")
    with started(words) as process:
        wait_for_steps(run, 3, limit_s=90)
        rank = max(psutil.Process(process.pid).children(), key=lambda child: child.pid)
        rank.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    (stop,) = records(run, "stop")
    assert stop["reason"] == f"stopped by SIGTERM after step {stop['step']}"
    ((saved, _),) = [found for found in list_checkpoints(run / "checkpoints") if found[0] % 10]
    assert saved == stop["step"] == steps(run)[-1]["step"]
    goal = max(20, saved + 2)
    world.trained(run, layout, f"train.steps={goal}")
    assert [record["step"] for record in steps(run)] == list(range(1, goal + 1))
    assert steps(run)[:20] == steps(whole_runs[layout])


def wait_for_steps(run: Path, count: int, limit_s: float) -> None:
    """Return as soon as that many steps are in the metrics."""
    deadline = time.monotonic() + limit_s
    while not (run / "metrics.jsonl").exists() or len(steps(run)) < count:
        assert time.monotonic() < deadline, f"no {count} steps within {limit_s} s"
        time.sleep(0.002)
