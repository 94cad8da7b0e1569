"""A slow rank is named, under each way of cutting the work, though all ranks' steps take equally long."""

from __future__ import annotations

from pathlib import Path

import pytest
import straggler_calls
from commands import records
from tiny_world import SHORT, Layout, World

from cptron.testing import run_ranks

OFTEN = [
    "train.steps=6",
    "train.global_batch_size=4",
    "eval.every_steps=0",
    "eval.at_start=false",
    "checkpoint.every_steps=0",
]
OFTEN += ["runtime.straggler_every_steps=1", "runtime.straggler_factor=1.5"]
SLOW_S = 0.6


def run_slow(
    world: World, run_dir: Path, layout: Layout, rank: int, *more: str, **how: object
) -> tuple[Path, str]:
    """Train with a slow rank; the run, and what rank 0 printed."""
    words = [f"run.dir={run_dir}", *layout.overrides, *SHORT, *OFTEN, *more]
    told = {"slow_s": SLOW_S, "where": "forward", **how}
    found = run_ranks(
        straggler_calls.train_with_slow, layout.world_size, str(world.config), words, rank, **told
    )
    assert not any(outcome.error for outcome in found), found[0].error
    return run_dir, found[0].stdout


def test_time_in_a_collective_is_not_a_ranks_own() -> None:
    found = run_ranks(straggler_calls.own_time_of_a_wait, 2, 1, 0.4)
    assert found[1]["own"] >= 0.4
    for rank in found:
        assert 0 < rank["least_wait"] <= rank["wait"] <= rank["most_wait"]
        assert rank["least_all"] <= rank["all"] <= rank["most_all"]


@pytest.mark.parametrize(
    ("layout", "rank", "where"),
    [
        (Layout(2), 1, "data"),
        pytest.param(Layout(2, tp=2), 1, "forward", marks=pytest.mark.more),
        (Layout(2, pp=2), 0, "forward"),
        pytest.param(Layout(2, pp=2), 1, "forward", marks=pytest.mark.more),
    ],
    ids=str,
)
def test_the_slow_rank_is_named(world: World, tmp_path: Path, layout: Layout, rank: int, where: str) -> None:
    run, printed = run_slow(world, tmp_path / "run", layout, rank, where=where)
    found = records(run, "straggler")
    assert [(record["rank"], record["event"]) for record in found] == [(rank, "slow")]
    (record,) = found
    assert record["host"] and record["local_rank"] == rank and record["factor"] > 1.5
    assert record["own_time_s"] - record["peers_time_s"] > SLOW_S / 2
    assert f"straggler at step {record['step']}: rank {rank} ({record['host']}, local rank {rank};" in printed


@pytest.mark.more
def test_a_rank_that_recovers_is_said_to(world: World, tmp_path: Path) -> None:
    run, printed = run_slow(
        world, tmp_path / "run", Layout(2), 1, "train.steps=14", where="data", until_step=7
    )
    events = [(record["rank"], record["event"]) for record in records(run, "straggler")]
    assert events == [(1, "slow"), (1, "recovered")] and "no straggler any more" in printed


def test_nobody_is_named_where_all_are_alike_or_it_is_off(world: World, tmp_path: Path) -> None:
    """Off: nothing of torch is touched. The slow rank would be found otherwise."""
    run, _ = run_slow(world, tmp_path / "off", Layout(2), 1, "runtime.straggler_every_steps=0", where="data")
    assert records(run, "straggler") == []
    run, _ = run_slow(world, tmp_path / "alike", Layout(2), 7, where="data")
    assert records(run, "straggler") == [] and len(records(run, "step")) == 6
