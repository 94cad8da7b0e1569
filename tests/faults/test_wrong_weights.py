"""Weights that are not those asked for never train: the step-0 gate stops the run and nothing is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_calls
from commands import TORCHRUN, call, error_lines, records
from tiny_world import ONE, Layout, World

from cptron.testing import run_ranks


@pytest.fixture(scope="module")
def tampered(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that are whole by every size, with other weights inside."""
    root = tmp_path_factory.mktemp("tampered")
    for change in ("swap", "nudge", "drop"):
        run_ranks(rank_calls.rewrite_shards, 1, str(world.base), str(root / change), change)
    return {change: root / change for change in ("swap", "nudge", "drop")}


NAMED = {
    "swap": ("swap", "decoder.layers.0.mlp.linear_fc2.weight, decoder.layers.1.mlp.linear_fc2.weight (2"),
    "nudge": ("nudge", "decoder.final_layernorm.weight (1"),
}
"""What is changed, and how the error names it."""


def test_unchanged_rewrite_passes(world: World, tmp_path: Path) -> None:
    """The way these checkpoints are made is not what the gate objects to."""
    run_ranks(rank_calls.rewrite_shards, 1, str(world.base), str(tmp_path / "same"), "none")
    world.trained(tmp_path / "run", ONE, f"start.checkpoint={tmp_path / 'same'}", "train.steps=4")


@pytest.mark.parametrize("change", ["swap", "nudge"])
@pytest.mark.parametrize("layout", [pytest.param(ONE, marks=pytest.mark.more), Layout(2, pp=2)], ids=str)
def test_gate_stops_every_rank(
    change: str, layout: Layout, world: World, tampered: dict[str, Path], tmp_path: Path
) -> None:
    """Two layers exchanged, or one norm scaled by 5 %: `TrainingError` on all ranks, and no run directory."""
    outcomes = world.train(tmp_path / "run", layout, f"start.checkpoint={tampered[change]}")
    assert len(outcomes) == layout.world_size
    for outcome in outcomes:
        assert outcome.error.startswith("TrainingError: the loaded weights have loss")
        assert outcome.error.endswith("use another checkpoint, or convert the base model again")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named", "layout"),
    [
        pytest.param(*NAMED[change], layout, id=f"{change}-{layout}", marks=marks)
        for change, layout, marks in (
            ("swap", Layout(2, tp=2), ()),
            ("nudge", Layout(2, pp=2), ()),
            ("swap", Layout(2, pp=2), pytest.mark.more),
            ("nudge", Layout(2, tp=2), pytest.mark.more),
            ("swap", ONE, pytest.mark.more),
            ("nudge", ONE, pytest.mark.more),
        )
    ],
)
def test_changed_weights_are_named(
    change: str, named: str, layout: Layout, world: World, tmp_path: Path
) -> None:
    """By their checksums, on all ranks, however the model is cut."""
    run_ranks(rank_calls.rewrite_shards, 1, str(world.base), str(tmp_path / "base"), change, True)
    outcomes = world.train(tmp_path / "run", layout, f"start.checkpoint={tmp_path / 'base'}")
    assert len(outcomes) == layout.world_size
    for outcome in outcomes:
        assert outcome.error.startswith("CheckpointError")
        assert (
            f"holds other weights than were recorded when it was written: {named} parameter(s)"
            in outcome.error
        )
    assert not (tmp_path / "run").exists()


def test_missing_weight_is_an_error_not_a_random_one(
    world: World, tampered: dict[str, Path], tmp_path: Path
) -> None:
    """A parameter absent from the shards is named."""
    (outcome,) = world.train(tmp_path / "run", ONE, f"start.checkpoint={tampered['drop']}")
    assert outcome.error.startswith("CheckpointError")
    assert "final_layernorm.weight" in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.more
def test_gate_under_torchrun(world: World, tampered: dict[str, Path], tmp_path: Path) -> None:
    """Real ranks: both refuse, none hangs, the launcher ends with an error."""
    overrides = [f"run.dir={tmp_path / 'run'}", f"start.checkpoint={tampered['swap']}", "parallel.tp=2"]
    done = call([*TORCHRUN, "-m", "cptron.cli", "train", world.config, *overrides], 240)
    assert done.returncode != 0
    lines = error_lines(done.stderr)
    assert 1 <= len(lines) <= 2
    assert all("the weights are not the ones asked for" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_run_directory_that_cannot_be_made(world: World, tmp_path: Path) -> None:
    """Found out by one rank, said by both."""
    (tmp_path / "file").write_text("in the way")
    outcomes = world.train(tmp_path / "file" / "run", Layout(2))
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert outcome.error.startswith(f"ConfigError: run.dir={tmp_path / 'file' / 'run'} cannot be writ")


def test_a_refused_start_leaves_warm_ranks_usable(
    world: World, tampered: dict[str, Path], tmp_path: Path
) -> None:
    """Groups are gone after an error, so that the same processes can join another layout."""
    world.train(tmp_path / "refused", Layout(2, tp=2), f"start.checkpoint={tampered['swap']}")
    world.trained(tmp_path / "run", Layout(2, pp=2), "train.steps=4")


def test_random_weights_only_when_asked_for(world: World, tmp_path: Path) -> None:
    """`start.mode=random` says so in the console, and its run is not taken for one of the base's."""
    random = (
        "start.mode=random",
        "start.checkpoint=",
        f"model.architecture={world.hugging_face}/config.json",
    )
    (outcome,) = world.train(tmp_path / "run", ONE, *random, "train.steps=4")
    assert outcome.error == ""
    assert "starting from random weights" in outcome.stdout
    assert records(tmp_path / "run", "eval")[0]["valid/domain/loss_nats_per_token"] > 5
    (refused,) = world.train(tmp_path / "run", ONE)
    assert "holds another run" in refused.error and "start random -> " in refused.error
