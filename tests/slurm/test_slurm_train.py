"""Training jobs of the shipped template under a real scheduler: the losses are those without it, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import evals, records, steps
from slurm_cluster import Cluster
from slurm_jobs import OpenEnded, submit_training
from tiny_world import SHORT, Layout, World

from cptron.checkpoint.layout import list_checkpoints


def test_two_nodes(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """One rank on each of two nodes train as they do without SLURM."""
    layout, run = Layout(2), tmp_path / "run"
    alone = world.trained(tmp_path / "alone", layout, *SHORT)
    job = submit_training(cluster, tmp_path, world.config, [f"run.dir={run}", *layout.overrides, *SHORT])
    job.wait("COMPLETED")
    assert job.field("NodeList") == "n[1-2]"
    assert steps(run) == steps(alone)
    assert len(steps(run)) == 6


@pytest.mark.more
def test_tensor_and_data_parallel(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """Two ranks on each of two nodes: tensor parallel within a node, data parallel between them."""
    layout, run = Layout(4, tp=2), tmp_path / "run"
    job = submit_training(
        cluster, tmp_path, world.config, [f"run.dir={run}", *layout.overrides, *SHORT], "--ntasks-per-node=2"
    )
    alone = world.trained(tmp_path / "alone", layout, *SHORT)
    job.wait("COMPLETED")
    assert steps(run) == steps(alone)
    assert len(steps(run)) == 6
    assert [{**record, "time_s": 0} for record in evals(run)] == [
        {**record, "time_s": 0} for record in evals(alone)
    ]


@pytest.mark.more
def test_time_limit(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """300 s before its limit the job is signalled, saves, requeues itself and goes on to an unbroken curve."""
    run, endless = tmp_path / "run", OpenEnded(world, tmp_path)
    job = submit_training(cluster, tmp_path, endless.config, [f"run.dir={run}", *endless.overrides])
    job.until_step(run, 3)
    job.near_the_limit()
    job.until(lambda: job.field("Restarts") == "1", "requeued")
    (stop,) = records(run, "stop")
    assert stop["reason"] == f"stopped by SIGUSR1 after step {stop['step']}"
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [stop["step"]]
    num_steps = stop["step"] + 4
    endless.finish(num_steps)
    cluster.run("scontrol", "update", f"jobid={job.number}", "TimeLimit=60")
    alone = endless.undisturbed(tmp_path / "alone", Layout(2), num_steps)
    job.wait("COMPLETED")
    assert job.field("Restarts") == "1"
    assert steps(run) == steps(alone)
    assert len(steps(run)) == num_steps
