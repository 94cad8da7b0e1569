"""Runs through files with every regulariser on: one process, eight ranks, and a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import evals, steps
from tiny_world import ONE, SHORT, Layout, World, command, interrupted

from cptron.regularise.taught_file import bin_file, row_type

EIGHT = Layout(8, tp=2, pp=2)


def strip(run_dir: Path) -> list[dict[str, Any]]:
    """Steps without the cosine, which is the quotient of two small numbers, and what it decides."""
    return [{key: value for key, value in step.items() if "agem/" not in key} for step in steps(run_dir)]


@pytest.fixture(scope="module")
def everything(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that turn all of it on."""
    fisher = tmp_path_factory.mktemp("fisher") / "of_base"
    made = command(
        "fisher",
        world.base,
        *("--data", world.tokens("general"), "--output", fisher, "--sequences", "8", "--seq-length", "32"),
    )
    assert not made.error, made.error
    assert json.loads(made.stdout)["estimator"] == "sequences"
    return [
        *SHORT,
        "log.every_steps=1",
        "optim.eps=1.0e-5",  # else gradients that are noise become steps of the whole rate
        "data.sources.general.role=replay",
        "optim.weight_decay=0.0",
        "optim.freeze=[{match: word_embeddings, until_tokens: 900, rows_below: 200}, "
        "{match: 'layers\\.0\\.', until_tokens: 600}]",
        "regularise.l2sp=20.0",
        "regularise.ewc=0.01",
        f"regularise.fisher={fisher}",
        "regularise.agem=true",
        "regularise.distill.weight=0.5",
        "regularise.distill.top_k=8",
    ]


@pytest.fixture(scope="module")
def whole(world: World, everything: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return world.trained(tmp_path_factory.mktemp("whole") / "run", ONE, *everything)


@pytest.mark.more  # with everything else in tests/faults/test_all_together.py
def test_eight_ranks_give_the_run_of_one(
    world: World, everything: list[str], whole: Path, tmp_path: Path
) -> None:
    """Losses, norms, drift, penalties and divergence within 1e-4 of one process at tp 2, pp 2, dp 2."""
    run = world.trained(tmp_path / "run", EIGHT, *everything)
    assert len(steps(whole)) == 6
    for ours, theirs in zip(strip(run), strip(whole), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            small = 1e-5 if "divergence" in key else 1e-9
            assert ours[key] == pytest.approx(value, rel=1e-4, abs=small), f"step {theirs['step']}: {key}"
    last = steps(whole)[-1]
    assert last["drift/all"] > 0 and last["penalty/ewc"] > 0 and last["penalty/l2sp"] > 0
    assert last["divergence_nats_per_token/general"] > 0 and last["divergence_nats_per_token/domain"] == 0
    assert {step["agem/projected"] for step in steps(whole)} <= {0.0, 1.0}


def test_a_resume_is_exact(world: World, everything: list[str], whole: Path, tmp_path: Path) -> None:
    """Starting weights and Fisher information are read again; what follows is the uninterrupted run to the bit."""
    run = world.trained(interrupted(whole, tmp_path / "run"), ONE, *everything)
    assert steps(run) == steps(whole)
    assert evals(run) == evals(whole)


def test_what_is_not_of_the_start_is_refused(
    world: World, everything: list[str], whole: Path, tmp_path: Path
) -> None:
    """Fisher information of other weights, and a damaged file of it, before anything is trained; AdamW's own of a run
    serves the next one."""
    other = command("fisher", whole, "--from-adam", "--output", tmp_path / "f")
    assert not other.error, other.error
    assert "approximation" in json.loads(other.stdout)["note"]
    words = [word for word in everything if "fisher" not in word and "distill" not in word]
    (outcome,) = world.train(tmp_path / "run", ONE, *words, f"regularise.fisher={tmp_path / 'f'}")
    assert (
        outcome.error.startswith("CheckpointError: regularise.fisher=") and "is of weights" in outcome.error
    )
    (own,) = world.train(
        tmp_path / "adam", ONE, *words, f"regularise.fisher={tmp_path / 'f'}", f"start.checkpoint={whole}"
    )
    assert not own.error
    file = next((tmp_path / "f" / "shards").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (outcome,) = world.train(
        tmp_path / "bad", ONE, *words, f"regularise.fisher={tmp_path / 'f'}", f"start.checkpoint={whole}"
    )
    assert "is damaged" in outcome.error and file.name in outcome.error


@pytest.mark.more  # tests/ranks/test_distill.py proves what the answers are
def test_a_cached_teacher_from_the_command_to_the_run(world: World, tmp_path: Path) -> None:
    """Refused before it was asked; then a run under eight ranks that reads it is that of one; answers of other weights
    are refused. At the first step the same weights in other windows are nearer than answers seven tokens off."""
    prefix = tmp_path / "general"
    for end in (".bin", ".idx", ".manifest.json"):
        shutil.copy(f"{world.tokens('general')}{end}", f"{prefix}{end}")
    words = [
        *SHORT,
        *("train.steps=3", "eval.every_steps=0", "checkpoint.every_steps=0", "log.every_steps=1"),
        *("optim.eps=1.0e-5", "data.sources.general.role=replay", f"data.sources.general.path={prefix}"),
        "regularise.distill={weight: 0.5, top_k: 8, teacher: cached}",
    ]
    (early,) = world.train(tmp_path / "early", ONE, *words)
    assert early.error.startswith("DataError") and "was not taught" in early.error
    ask = ["--data", prefix, "--top-k", "8", "--seq-length", "64", "--device", "cpu"]
    assert not command("teach", world.base, *ask).error
    found = steps(world.trained(tmp_path / "one", ONE, *words))
    assert found[0]["divergence_nats_per_token/domain"] == 0
    for ours, theirs in zip(steps(world.trained(tmp_path / "eight", EIGHT, *words)), found, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=2e-4, abs=1e-9), f"step {theirs['step']}: {key}"
    rows = np.fromfile(bin_file(str(prefix)), row_type(8))
    np.roll(rows, 7).tofile(bin_file(str(prefix)))
    (off,) = steps(
        world.trained(
            tmp_path / "off", ONE, *words, "train.steps=1", "optim.warmup_steps=0", "checkpoint.verify=sizes"
        )
    )
    near, far = (step["divergence_nats_per_token/general"] for step in (found[0], off))
    assert 0 < near < 0.95 * far  # not equal: documents are longer than windows, and cut elsewhere
    assert not command("teach", tmp_path / "one", *ask).error
    (other,) = world.train(tmp_path / "other", ONE, *words)
    assert other.error.startswith("CheckpointError") and "is of weights" in other.error
