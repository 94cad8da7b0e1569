"""A save that is cut off, or a checkpoint damaged later, costs the steps since the one before, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import rank_calls
from commands import call, cptron, evals, records, snapshot, steps
from shard_files import sign
from tiny_world import ONE, SHORT, Layout, World

from cptron.checkpoint import layout
from cptron.checkpoint.layout import list_checkpoints, read_manifest
from cptron.testing import run_ranks

DYING = """
import os, signal, sys
from cptron.checkpoint.block_file import BlockFile
from cptron.cli import main

write = BlockFile.write
def write_or_die(file, *words):
    write(file, *words)
    if ".writing_step_00000012" in str(file._stream.name) and len(file.blocks) == 3:
        os.killpg(0, signal.SIGKILL)
BlockFile.write = write_or_die
sys.exit(main(sys.argv[1:]))
"""
"""Ends itself, and whatever it has started, in its third save."""


def test_sigkill_during_a_save(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """The process group dies while a checkpoint is half written; the same command goes on from the one before."""
    run = tmp_path / "run"
    words = ["train", world.config, f"run.dir={run}", "checkpoint.every_steps=4"]
    assert call([sys.executable, "-c", DYING, *words], 240).returncode == -signal.SIGKILL
    working = run / "checkpoints" / ".writing_step_00000012"
    assert list((working / "shards").iterdir()), "killed too early"
    assert not (run / "checkpoints" / "step_00000012").exists(), "killed too late"
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [4, 8]
    for _, directory in list_checkpoints(run / "checkpoints"):
        read_manifest(directory)

    done = call(cptron(*words), 240)
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
    "damage",
    [
        "truncated shard",
        pytest.param("missing shard", marks=pytest.mark.more),
        pytest.param("missing manifest", marks=pytest.mark.more),
        "half a manifest",
    ],
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


def test_what_is_saved_after_damage_stays(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A flipped bit in the newest checkpoint shows in no size: the one that is saved before its step stays all the
    same, however few are kept, and the same command goes on from it."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    shard = largest_shard(run / "checkpoints" / "step_00000020")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    words = ("checkpoint.keep_last=1", "checkpoint.every_steps=3", "eval.every_steps=0")
    world.trained(run, ONE, *words, "train.steps=12")
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [12, 20]
    world.trained(run, ONE, *words, "train.steps=14")
    assert [record["step"] for record in records(run, "start")] == [0, 10, 12]


def train_with_late_nan(config: str, overrides: list[str], step: int) -> rank_calls.Outcome:
    """Train; a weight of rank 1 becomes NaN by the update of `step`, after which it is saved."""
    import torch

    from cptron.runtime.launcher import launched_ranks
    from cptron.train.save import Saver

    save, ranks = Saver.save, launched_ranks()

    def spoil_and_save(self: Saver) -> list[Path]:
        if self._run.state.step == step and ranks is not None and ranks.rank == 1:
            with torch.no_grad():
                next(self._run.chunks[0].parameters()).fill_(torch.nan)
        return save(self)

    Saver.save = spoil_and_save  # type: ignore[method-assign]
    try:
        return rank_calls.train(config, overrides)
    finally:
        Saver.save = save  # type: ignore[method-assign]


def test_weights_that_are_no_numbers_are_not_saved(world: World, tmp_path: Path) -> None:
    """No start would take them, nor look for those before: the run ends on all ranks, and goes on from the checkpoint
    before."""
    run = tmp_path / "run"
    words = [*SHORT, "parallel.tp=2", f"run.dir={run}"]
    for outcome in run_ranks(train_with_late_nan, 2, str(world.config), words, 6, timeout_s=240):
        assert outcome.error.startswith("TrainingError: the weights after step 6 have loss nan on the probe")
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [3]
    assert not list((run / "checkpoints").glob(".*"))
    world.trained(run, Layout(2, tp=2), *SHORT)
    assert [record["step"] for record in records(run, "start")] == [0, 3]


def train_on_full_disk(config: str, overrides: list[str]) -> rank_calls.Outcome:
    """Train; the disk is full when the shards are written and the rest of the checkpoint is to follow."""
    publish = layout.publish

    def full(final: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(final))

    layout.publish = full  # type: ignore[assignment]
    try:
        return rank_calls.train(config, overrides)
    finally:
        layout.publish = publish


def test_full_disk_at_the_end_of_a_save(world: World, tmp_path: Path) -> None:
    """Found out by one rank, said by both; nothing is published."""
    run = tmp_path / "run"
    outcomes = run_ranks(
        train_on_full_disk, 2, str(world.config), [f"run.dir={run}", "train.steps=4"], timeout_s=240
    )
    for outcome in outcomes:
        assert outcome.error.startswith(f"CheckpointError: cannot write {run / 'checkpoints' / '.writing_'}")
        assert "No space left on device" in outcome.error and "free space" in outcome.error
    assert list_checkpoints(run / "checkpoints") == []


DAMAGE: dict[str, tuple[dict[str, object], str]] = {
    "no step": ({"step": None}, "lacks step"),
    "no random states": ({"random_states": None}, "lacks random_states"),
    "step is text": ({"step": "10"}, "step is '10'"),
    "step is a truth value": ({"step": True}, "step is True"),
    "tokens below zero": ({"tokens_total": -1}, "tokens_total is -1"),
    "ledger is a list": ({"ledger": []}, "ledger is []"),
    "random states without ranks": ({"random_states": {}}, "random_states is {}"),
    "random state of no rank": ({"random_states": ["cpu"]}, "random_states is ['cpu']"),
    "random state that is none": ({"random_states": [{"cpu": "%"}]}, "generator states"),
    "random state too short": ({"random_states": [{"cpu": "AAAA"}]}, "random state"),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if number % 2 else pytest.mark.more) for number, case in enumerate(DAMAGE)],
)
def test_damaged_state_is_refused(
    case: str, world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A `state.json` of the right size with wrong contents: one line on the key, no traceback, nothing written."""
    changes, words = DAMAGE[case]
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    directory = run / "checkpoints" / "step_00000020"
    state = json.loads((directory / "state.json").read_text()) | changes
    text = json.dumps({key: value for key, value in state.items() if value is not None})
    (directory / "state.json").write_text(text)
    sign(directory)
    before = snapshot(run)
    (outcome,) = world.train(run, ONE)
    assert outcome.error.startswith("CheckpointError: ")
    assert words in outcome.error and "use another checkpoint" in outcome.error
    assert snapshot(run) == before


def export_watched(checkpoint: str, target: str) -> list[str]:
    """Export; returns what has its final name without having been forced to disk before, or after (the parent)."""
    from cptron.convert.hf_export import export_hugging_face

    fsync, rename, flushed, published = os.fsync, os.rename, set(), []

    def watched_fsync(descriptor: int) -> None:
        flushed.add((len(published), os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        published.append(target)
        rename(source, target)

    os.fsync, os.rename = watched_fsync, watched_rename  # type: ignore[assignment]
    try:
        export_hugging_face(Path(checkpoint), Path(target))
    finally:
        os.fsync, os.rename = fsync, rename
    assert published[-1] == Path(target)
    final, when = Path(target), len(published)
    wanted = [(when - 1, path) for path in (final, *final.rglob("*"))] + [(when, final.parent)]
    return [str(path) for moment, path in wanted if (moment, path.stat().st_ino) not in flushed]


def test_export_is_on_disk_before_it_has_its_name(world: World, tmp_path: Path) -> None:
    """A power cut never leaves half a model under the final name."""
    assert run_ranks(export_watched, 1, str(world.base), str(tmp_path / "hf")) == [[]]
