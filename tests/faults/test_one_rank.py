"""What happens to one rank happens to all: an error stops every rank, and a request to stop is kept by every rank."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import rank_calls
from commands import TORCHRUN, call, cptron, error_lines, records, started, steps
from tiny_world import ONE, Layout, World, tokenize

from cptron.checkpoint.layout import list_checkpoints
from cptron.errors import STOPPED_EXIT_CODE
from cptron.testing import run_ranks

SCRIPT = """
import os, sys
from cptron.cli import main
wrong = ["start.checkpoint=/nonexistent/base"] if os.environ["RANK"] == "1" else []
sys.exit(main(["train", *sys.argv[1:], *wrong]))
"""


@pytest.mark.parametrize(
    ("layout", "poisoned_rank"),
    [
        (Layout(2, tp=2), 1),
        (Layout(2, pp=2), 0),
        pytest.param(Layout(2, tp=2), 0, marks=pytest.mark.more),
        pytest.param(Layout(2, pp=2), 1, marks=pytest.mark.more),
    ],
    ids=str,
)
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
    outcomes = run_ranks(rank_calls.train_with_nan, 2, str(world.config), words, poisoned_rank, timeout_s=240)
    assert all(outcome.error.startswith("TrainingError") and "nan" in outcome.error for outcome in outcomes)
    assert records(tmp_path / "run", "step") == []
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_one_rank_has_other_token_files(world: World, tmp_path: Path) -> None:
    """A node with files of its own, which only the ranks together can find out, is an error on both."""
    corpus = tmp_path / "other.jsonl"
    corpus.write_text(json.dumps({"text": "index planner"}) + "\n")
    other = tokenize(corpus, world.hugging_face)
    common = [f"run.dir={tmp_path / 'run'}"]
    outcomes = run_ranks(
        rank_calls.train_each,
        2,
        str(world.config),
        [common, [*common, f"data.sources.domain.path={other}"]],
        timeout_s=240,
    )
    assert [outcome.error.startswith("DataError: source domain") for outcome in outcomes] == [True, True]
    assert outcomes[0].error == outcomes[1].error


def test_ranks_that_see_different_checkpoints(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A file system that shows rank 1 an older state: both ranks refuse to mix two checkpoints."""
    words = []
    for rank in (0, 1):
        run = tmp_path / str(rank) / "run"
        shutil.copytree(whole_runs[ONE], run)
        words.append([f"run.dir={run}"])
    shutil.rmtree(tmp_path / "1" / "run" / "checkpoints" / "step_00000020")
    outcomes = run_ranks(rank_calls.train_each, 2, str(world.config), words, timeout_s=240)
    assert outcomes[0].error == outcomes[1].error
    assert outcomes[0].error.startswith("CheckpointError: rank 1 would start from ")
    assert "step_00000020" in outcomes[0].error and "step_00000010" in outcomes[0].error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_that_one_rank_cannot_read(rank: int, world: World, tmp_path: Path) -> None:
    """In the middle of a direct start: both ranks stop, at once and alike."""
    start = ("start.checkpoint=", f"start.hugging_face={world.hugging_face}")
    words = [
        f"run.dir={tmp_path / 'run'}",
        "parallel.tp=2",
        "runtime.timeout_s=900",
        *start,
    ]  # no collective gives up
    outcomes = run_ranks(rank_calls.train_with_a_lost_file, 2, str(world.config), words, rank)
    assert {outcome.error for outcome in outcomes} == {
        "ConversionError: model.safetensors cannot be read; download it again"
    }
    assert not (tmp_path / "run").exists()


def test_ranks_with_different_configurations(world: World, tmp_path: Path) -> None:
    """Another seed on rank 1 is another run."""
    words = [[f"run.dir={tmp_path / 'run'}", f"run.seed={seed}"] for seed in (1, 2)]
    outcomes = run_ranks(rank_calls.train_each, 2, str(world.config), words, timeout_s=240)
    assert outcomes[0].error == outcomes[1].error
    assert outcomes[0].error.startswith("CheckpointError: rank 1 has seed=2, rank 0 has seed=1")
    assert not (tmp_path / "run").exists()


def train_without_tensorboard(config: str, overrides: list[str]) -> rank_calls.Outcome:
    """Train where `tensorboard` is not installed."""
    name = "torch.utils.tensorboard"
    before = sys.modules.pop(name, None)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        return rank_calls.train(config, overrides)
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def test_missing_package_that_only_rank_0_needs(world: World, tmp_path: Path) -> None:
    """Rank 0 alone opens the reports; no rank waits for it in the loop."""
    words = [f"run.dir={tmp_path / 'run'}", "log.tensorboard=true"]
    outcomes = run_ranks(train_without_tensorboard, 2, str(world.config), words, timeout_s=240)
    for outcome in outcomes:
        assert outcome.error.startswith("ConfigError: log.tensorboard=true needs the tensorboard package")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("config.yaml.new", "run.dir={run} cannot be written", marks=pytest.mark.more),
        ("metrics.jsonl", "run.dir={run} cannot be written"),
        pytest.param("config.yaml", "run.dir={run} cannot be written", marks=pytest.mark.more),
    ],
)
def test_file_of_the_run_that_is_a_directory(
    name: str, message: str, world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Where rank 0 would write it: both ranks say so."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    for outcome in world.train(run, Layout(2)):
        assert outcome.error.startswith(f"ConfigError: {message.format(run=run)}")
        assert name in outcome.error


def test_error_of_one_rank_before_the_ranks_join(world: World, tmp_path: Path) -> None:
    """Under torchrun the rank that waits for its neighbour is ended, within seconds."""
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    done = call([*TORCHRUN, script, world.config, f"run.dir={tmp_path / 'run'}"], 240)
    assert done.returncode != 0
    (line,) = error_lines(done.stderr)
    assert line.startswith("cptron: error [rank 1]: checkpoint /nonexistent/base does not exist")


def test_sigterm_to_one_rank_saves_and_stops_all(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Both ranks save after the same step and exit with 75; the run goes on to the same curve."""
    layout = Layout(2)
    run = tmp_path / "run"
    words = ["train", world.config, f"run.dir={run}", "parallel.local_ranks=2", "train.steps=5000"]
    with started(cptron(*words, "checkpoint.every_steps=0")) as process:
        wait_for_steps(run, 3, limit_s=240)
        rank = max(psutil.Process(process.pid).children(), key=lambda child: child.pid)
        rank.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=240)
    assert process.returncode == STOPPED_EXIT_CODE, stderr
    (stop,) = records(run, "stop")
    assert stop["reason"] == f"stopped by SIGTERM after step {stop['step']}"
    ((saved, _),) = list_checkpoints(run / "checkpoints")
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
