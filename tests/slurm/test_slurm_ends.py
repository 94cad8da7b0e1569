"""Jobs that end otherwise than planned: cancelled, on a node that goes down or is drained, with a rank that fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import assert_close, records, steps
from slurm_cluster import NODES, Cluster
from slurm_jobs import OpenEnded, last_step, submit_training
from tiny_world import SHORT, Layout, World

from cptron.checkpoint.layout import list_checkpoints

pytestmark = pytest.mark.more
FAULTY = """\
#!{python}
import os, sys
if sys.argv[1] == "train" and os.environ["SLURM_PROCID"] == "1":
    from cptron.errors import DataError
    from cptron.train import loop
    train_step, taken = loop.train_step, []
    def faulty(*args, **named):
        taken.append(1)
        if len(taken) == 3:
            raise {error}
        return train_step(*args, **named)
    loop.train_step = faulty
from cptron.cli import main
sys.exit(main())
"""


def test_scancel(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """The ranks save and are gone within SLURM's KillWait, the job stays cancelled, and the run can be resumed."""
    run, endless = tmp_path / "run", OpenEnded(world, tmp_path)
    job = submit_training(cluster, tmp_path, endless.config, [f"run.dir={run}", *endless.overrides])
    job.until_step(run, 3)
    assert len([words for words in job.processes() if "train" in words]) >= 2
    start_s = time.monotonic()
    cluster.run("scancel", job.number)
    job.until(lambda: not job.processes(), "without processes", timeout_s=60)
    assert time.monotonic() - start_s < 45, "SLURM's KillWait is 30 s"
    job.wait("CANCELLED")
    (stop,) = records(run, "stop")
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [stop["step"]]
    time.sleep(3)
    assert job.state == "CANCELLED" and job.field("Restarts") == "0", (
        "a job that its user cancelled came back"
    )
    num_steps = stop["step"] + 4
    endless.undisturbed(run, Layout(2), num_steps)
    assert steps(run) == steps(endless.undisturbed(tmp_path / "alone", Layout(2), num_steps))


@pytest.fixture
def all_nodes(cluster: Cluster) -> Iterator[None]:
    """Both nodes are back after the test."""
    yield
    cluster.call("scontrol", "update", f"nodename={NODES[1]}", "state=resume")  # refused where it is well


@pytest.mark.usefixtures("all_nodes")
def test_node_goes_down(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """SLURM requeues the job by itself; made smaller, it goes on from its last checkpoint on the node that is left."""
    run, endless = tmp_path / "run", OpenEnded(world, tmp_path)
    words = [f"run.dir={run}", *endless.overrides, "checkpoint.every_steps=2"]
    job = submit_training(cluster, tmp_path, endless.config, words)
    job.until_step(run, 5)
    assert job.field("NodeList") == "n[1-2]"
    cluster.run("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    job.until(lambda: job.field("Restarts") == "1" and not job.processes(), "requeued")
    newest = max(step for step, _ in list_checkpoints(run / "checkpoints"))
    num_steps = last_step(run) + 3
    endless.finish(num_steps)
    cluster.run("scontrol", "update", f"jobid={job.number}", "NumTasks=1", "NumNodes=1-1")
    job.wait("COMPLETED")
    assert job.field("NodeList") == NODES[0]
    starts = [(record["step"], record["world_size"]) for record in records(run, "start")]
    assert starts == [(0, 2), (newest, 1)]
    assert_close(steps(run), steps(endless.undisturbed(tmp_path / "alone", Layout(2), num_steps)))
    assert len(steps(run)) == num_steps


@pytest.mark.usefixtures("all_nodes")
def test_node_is_drained(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """The job trains on while its node drains; at the signal of its time limit it saves, is requeued, waits for nodes,
    and goes on without a lost step on the one that is left."""
    run, endless = tmp_path / "run", OpenEnded(world, tmp_path)
    job = submit_training(cluster, tmp_path, endless.config, [f"run.dir={run}", *endless.overrides])
    job.until_step(run, 3)
    cluster.run("scontrol", "update", f"nodename={NODES[1]}", "state=drain", "reason=test")
    job.until_step(run, last_step(run) + 3)
    assert job.state == "RUNNING" and job.field("Restarts") == "0"
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.until(lambda: job.field("Restarts") == "1" and not job.processes(), "requeued")
    (stop,) = records(run, "stop")
    num_steps = stop["step"] + 3
    endless.finish(num_steps)
    cluster.run("scontrol", "update", f"jobid={job.number}", "NumTasks=1", "NumNodes=1-1")
    job.wait("COMPLETED")
    assert job.field("NodeList") == NODES[0]
    starts = [(record["step"], record["world_size"]) for record in records(run, "start")]
    assert starts == [(0, 2), (stop["step"], 1)]
    assert_close(steps(run), steps(endless.undisturbed(tmp_path / "alone", Layout(2), num_steps)))
    assert len(steps(run)) == num_steps


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("ValueError('the step went wrong')", 1, "[rank 1] ValueError: the step went wrong"),
        (
            "DataError('a file is gone; bring it back')",
            2,
            "cptron: error [rank 1]: a file is gone; bring it back",
        ),
    ],
    ids=["bug", "user"],
)
def test_failing_rank(
    cluster: Cluster, world: World, tmp_path: Path, error: str, code: int, said: str
) -> None:
    """What went wrong on rank 1 of two nodes is in the job's log; the job has failed, and is not started again."""
    venv = faulty_environment(tmp_path, error)
    words = [f"run.dir={tmp_path / 'run'}", *SHORT]
    job = submit_training(cluster, tmp_path, world.config, words, CPTRON_VENV=str(venv))
    job.wait("FAILED")
    assert job.field("ExitCode") == f"{code}:0"
    assert said in job.log, job.log
    assert ("[rank 1] Traceback (most recent call last):" in job.log) == (code == 1)
    job.until(lambda: not job.processes(), "without processes", timeout_s=60)
    assert job.field("Restarts") == "0"


def faulty_environment(directory: Path, error: str) -> Path:
    """A virtual environment whose `cptron` raises `error` in the third step of rank 1."""
    import sys

    (directory / "venv/bin").mkdir(parents=True)
    command = directory / "venv/bin/cptron"
    command.write_text(FAULTY.format(python=sys.executable, error=error))
    command.chmod(0o755)
    (directory / "venv/bin/activate").write_text(f"PATH={directory}/venv/bin:{sys.prefix}/bin:$PATH\n")
    return directory / "venv"
