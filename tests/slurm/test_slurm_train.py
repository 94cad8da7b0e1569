"""Training jobs of the shipped template under a real scheduler."""

from __future__ import annotations

from pathlib import Path

from commands import evals, steps
from slurm_cluster import Cluster
from slurm_jobs import submit_training
from tiny_world import SHORT, Layout, World


def test_two_nodes(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """One rank on each of two nodes train as they do without SLURM, to the bit."""
    layout = Layout(2)
    run = tmp_path / "run"
    job = submit_training(cluster, tmp_path, world.config, [f"run.dir={run}", *layout.overrides, *SHORT])
    alone = world.trained(tmp_path / "alone", layout, *SHORT)
    job.wait("COMPLETED")
    assert job.field("NodeList") == "n[1-2]"
    assert steps(run) == steps(alone)
    assert len(steps(run)) == 6
