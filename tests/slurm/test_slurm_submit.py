"""`cptron submit`, `status`, `logs` and `cancel` against a real scheduler."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import records, steps
from slurm_cluster import Cluster
from slurm_jobs import Job, OpenEnded, environment, last_step
from slurm_jobs import submit as sbatch
from tiny_world import Layout, World

from cptron.checkpoint.layout import list_checkpoints
from cptron.errors import EXIT_CODE

pytestmark = pytest.mark.more
TWO_NODES = (
    "--nodes",
    "2",
    "--ranks-per-node",
    "1",
    "--gpus-per-node",
    "0",
    "--cpus-per-task",
    "1",
    "--time",
    "1h",
)
NUM_PARTS = 8


@dataclass(frozen=True)
class User:
    """Somebody at a login node of the cluster, in a folder of their own."""

    cluster: Cluster
    cwd: Path

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A `cptron` command as a process."""
        env = {
            **environment(),
            "CPTRON_JOBS": str(self.cwd / "jobs.jsonl"),
            "XDG_CONFIG_HOME": str(self.cwd),
        }
        command = [sys.executable, "-m", "cptron.cli", *words]
        return self.cluster.call(*command, cwd=self.cwd, timeout_s=240, **env)

    def cptron(self, *words: str | Path) -> str:
        """What a command that succeeds prints."""
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *words: str | Path) -> list[Job]:
        """The jobs that `cptron submit` says it has submitted, in order."""
        ids = re.findall(r"^submitted job (\d+)", self.cptron("submit", *words), re.MULTILINE)
        assert ids
        return [Job(self.cluster, number, self.cwd) for number in ids]


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path) -> User:
    """In an empty folder."""
    return User(cluster, tmp_path)


def test_unknown_partition(user: User, world: World) -> None:
    """The scheduler's refusal is one line that names the partitions there are; no job and no record is left."""
    done = user.call(
        "submit", world.config, f"run.dir={user.cwd / 'run'}", *TWO_NODES, "--partition", "gpu_long"
    )
    assert done.returncode == EXIT_CODE
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cptron: error")]
    assert "partition" in line and "main" in line
    assert "submitted job" not in done.stdout
    assert not (user.cwd / "jobs.jsonl").exists()
    assert user.call("status", user.cwd / "run").returncode == EXIT_CODE


def test_cancel(user: User, world: World) -> None:
    """From submission to a saved end: status and logs show the run, cancel has it save, and it does not come back."""
    run, endless = user.cwd / "run", OpenEnded(world, user.cwd)
    (job,) = user.submit(endless.config, f"run.dir={run}", *endless.overrides, *TWO_NODES)
    job.until_step(run, 2)
    status = user.cptron("status", run)
    assert job.number in status and "runs" in status and "of 100,000" in status
    assert re.search(r"^\d: step +2/", user.cptron("logs", run), re.MULTILINE)
    user.cptron("cancel", run)
    job.until(lambda: not job.processes() and job.state not in ("RUNNING", "COMPLETING"), "ended")
    (stop,) = records(run, "stop")
    assert stop["reason"].startswith("stopped by SIGUSR1")
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [stop["step"]] == [last_step(run)]
    assert job.state == "FAILED" and job.field("Restarts") == "0"
    shown = user.cptron("status", job.number)
    assert "75" in shown, shown
    assert user.call("cancel", run).returncode == EXIT_CODE, "there is nothing left to cancel"


def test_chain(user: User, world: World) -> None:
    """The second link goes on where the first was stopped by its limit; the third is not needed, and is dropped."""
    run, endless = user.cwd / "run", OpenEnded(world, user.cwd)
    first, second, third = user.submit(
        endless.config, f"run.dir={run}", *endless.overrides, *TWO_NODES, "--chain", "3"
    )
    assert second.state == third.state == "PENDING"
    user.cluster.run("scontrol", "hold", second.number)
    first.until_step(run, 2)
    first.near_the_limit()
    first.until(lambda: first.state == "FAILED", "saved and ended")
    assert first.field("ExitCode") == "75:0" and first.field("Restarts") == "0"
    num_steps = last_step(run) + 3
    endless.finish(num_steps)
    user.cluster.run("scontrol", "release", second.number)
    alone = endless.undisturbed(user.cwd / "alone", Layout(2), num_steps)
    second.wait("COMPLETED")
    third.until(lambda: third.state == "CANCELLED", "dropped by the scheduler")
    assert steps(run) == steps(alone)
    assert len(steps(run)) == num_steps


def test_array(user: User, world: World) -> None:
    """Eight tasks and the merge behind them make, byte for byte, the token files of one job."""
    corpora = ["--input", *(str(world.corpus(name)) for name in ("domain", "general", "domain_valid"))]
    command = [
        "preprocess",
        *corpora,
        "--tokenizer-model",
        str(world.hugging_face),
        "--append-eod",
        "--output-prefix",
    ]
    site = ("--cpus-per-task", "1", "--time", "1h")
    by_hand = ("--cpus-per-task=1", "--time=60")
    one = sbatch(user.cluster, user.cwd, "preprocess.sbatch", by_hand, *command[1:], user.cwd / "one")
    array, merge = user.submit(*site, "--array", str(NUM_PARTS), "--merge", "--", *command, user.cwd / "web")
    one.wait("COMPLETED")
    for number in range(NUM_PARTS):
        Job(user.cluster, f"{array.number}_{number}", user.cwd).wait("COMPLETED")
    merge.wait("COMPLETED")
    assert len(list(user.cwd.glob("web_part-*_text_document.bin"))) == NUM_PARTS
    for suffix in (".bin", ".idx"):
        expected = (user.cwd / f"one_text_document{suffix}").read_bytes()
        assert (user.cwd / f"web_text_document{suffix}").read_bytes() == expected
        assert len(expected) > 1000
