"""A save that is cut off, or a checkpoint damaged later, costs the steps since the one before, and nothing else."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from commands import call, cptron, evals, kill_group, records, started, steps
from tiny_world import ONE, Layout, World

from cptron.checkpoint.layout import list_checkpoints, read_manifest


def test_sigkill_during_a_save(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """The process group dies while a checkpoint is half written; the same command goes on from the one before."""
    run = tmp_path / "run"
    words = cptron("train", world.config, f"run.dir={run}", "checkpoint.every_steps=4")
    working = run / "checkpoints" / ".writing_step_00000012"
    with started(words) as process:
        deadline = time.monotonic() + 90
        while not working.exists():
            assert time.monotonic() < deadline and process.poll() is None, (
                "the run never came to its third save"
            )
        kill_group(process)
        assert process.wait(timeout=30) == -9
    assert working.is_dir() and not (run / "checkpoints" / "step_00000012").exists(), "killed too late"
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [4, 8]
    for _, directory in list_checkpoints(run / "checkpoints"):
        read_manifest(directory)

    done = call(words, 90)
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in records(run, "start")] == [0, 8]
    assert steps(run) == steps(whole_runs[ONE])
    assert evals(run) == evals(whole_runs[ONE])
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [4, 8, 12, 16, 20]
    assert list((run / "checkpoints").glob(".*")) == []


def largest_shard(checkpoint: Path) -> Path:
    """The file of the shards that matters most."""
    return max((checkpoint / "shards").iterdir(), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    "damage", ["truncated shard", "missing shard", "missing manifest", "half a manifest"]
)
def test_damaged_newest_checkpoint_is_passed_over(
    damage: str, world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A note names the damage, the checkpoint before is used, and the run ends as if nothing had been."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    newest = run / "checkpoints" / "step_00000020"
    if "shard" in damage:
        shard = largest_shard(newest)
        data = shard.read_bytes()
        shard.unlink()
        if damage == "truncated shard":
            shard.write_bytes(data[:-100])
    else:
        manifest = newest / "manifest.json"
        text = manifest.read_text()
        manifest.unlink()
        if damage == "half a manifest":
            manifest.write_text(text[: len(text) // 2])
    (outcome,) = world.train(run, ONE)
    assert outcome.error == ""
    assert "passed over" in outcome.stdout and str(newest) in outcome.stdout
    assert [record["step"] for record in records(run, "start")] == [0, 10]
    assert steps(run) == steps(whole_runs[ONE])
    read_manifest(newest)


def test_no_usable_checkpoint_is_an_error(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A run whose checkpoints are all damaged is not silently started over."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    for _, directory in list_checkpoints(run / "checkpoints"):
        largest_shard(directory).unlink()
    before = steps(run)
    (outcome,) = world.train(run, ONE)
    assert outcome.error.startswith("CheckpointError: no checkpoint of")
    assert steps(run) == before


def test_keep_last_deletes_only_older_checkpoints(world: World, tmp_path: Path) -> None:
    """The newest two of five stay, whole."""
    run = world.trained(tmp_path / "run", ONE, "checkpoint.every_steps=4", "checkpoint.keep_last=2")
    kept = list_checkpoints(run / "checkpoints")
    assert [step for step, _ in kept] == [16, 20]
    for _, directory in kept:
        read_manifest(directory)
    assert list((run / "checkpoints").glob(".*")) == []
