"""Jobs in the cluster: submitted from the shipped templates as a user does it, waited for, and asked what came of them.

Place in the flow: used by every test here. Invariant: a wait ends with the state that was asked for, or fails with
the job's log and what SLURM knows of it; and the templates run as they are shipped, with the lines about the site
overridden on sbatch's command line.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from slurm_cluster import Cluster
from tiny_world import Layout, World

from cptron.report.sinks import read_records

ROOT = Path(__file__).parents[2]
JOB_S = 480.0
"""A rank of a loaded machine imports torch for a minute."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class Job:
    """One submitted job, seen through `scontrol`."""

    cluster: Cluster
    number: str
    """As sbatch printed it."""
    cwd: Path

    def field(self, name: str) -> str:
        """One field of `scontrol show job`, for example `JobState`."""
        words = self.cluster.run("scontrol", "show", "job", "-o", self.number).split()
        found = [word.split("=", 1)[1] for word in words if word.startswith(f"{name}=")]
        assert found, f"scontrol shows no {name} of job {self.number}"
        return found[0]

    @property
    def state(self) -> str:
        """`PENDING`, `RUNNING`, `COMPLETING`, or one of `ENDED`."""
        return self.field("JobState")

    @property
    def log(self) -> str:
        """What the job has written so far."""
        return "\n".join(
            path.read_text() for path in sorted((self.cwd / "logs").glob(f"*-{self.number}.out"))
        )

    def wait(self, *states: str, timeout_s: float = JOB_S) -> str:
        """Wait for one of the states; the one that came. Another end fails the test."""

        def ended() -> bool:
            state = self.state
            assert state in states or state not in ENDED, (
                f"job {self.number} is {state}, not {states}:\n{self.log}"
            )
            return state in states

        self.until(ended, f"one of {states}", timeout_s)
        return self.state

    def until(self, holds: Callable[[], bool], what: str, timeout_s: float = JOB_S) -> None:
        """Wait until it holds; else fails with everything that is known of the job."""
        end_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > end_s:
                shown = self.cluster.call("scontrol", "show", "job", self.number).stdout
                raise AssertionError(
                    f"job {self.number}: not {what} within {timeout_s:g} s\n{shown}\n{self.log}"
                )
            time.sleep(0.3)

    def until_step(self, run_dir: Path, step: int, timeout_s: float = JOB_S) -> None:
        """Wait until the run has done so many steps; a job that has ended before fails the test."""

        def trained() -> bool:
            assert self.state not in ENDED, (
                f"job {self.number} is {self.state} before step {step}:\n{self.log}"
            )
            return last_step(run_dir) >= step

        self.until(trained, f"step {step}", timeout_s)

    def near_the_limit(self) -> None:
        """Lower the time limit, which has whole minutes, until SLURM's next look at it finds the job 300 s before its
        end, where the template asks for the signal. It looks every 30 s, and signals what is due by its next look."""
        hours, minutes, seconds = map(int, self.field("RunTime").split(":"))
        run_s = 3600 * hours + 60 * minutes + seconds
        self.cluster.run("scontrol", "update", f"jobid={self.number}", f"TimeLimit={(run_s + 325) // 60}")

    def processes(self) -> list[str]:
        """Command lines of what this job started and what still lives."""
        found = []
        for process in self.cluster.processes():
            with contextlib.suppress(psutil.Error):  # gone since
                if process.environ().get("SLURM_JOB_ID") == self.number:
                    found.append(" ".join(process.cmdline()))
        return found


def last_step(run_dir: Path) -> int:
    """Of `metrics.jsonl`; 0 before the first."""
    if not (run_dir / "metrics.jsonl").exists():
        return 0
    return max(
        (
            int(record["step"])
            for record in read_records(run_dir / "metrics.jsonl")
            if record["kind"] == "step"
        ),
        default=0,
    )


def environment() -> dict[str, str]:
    """Of a job: this interpreter's environment and this source tree."""
    return {
        "CPTRON_VENV": sys.prefix,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }


def submit(
    cluster: Cluster, cwd: Path, template: str, options: Sequence[str], *arguments: str | Path, **env: str
) -> Job:
    """`sbatch [options] launch/TEMPLATE arguments` in the folder `cwd`."""
    (cwd / "logs").mkdir(exist_ok=True)
    words = ["sbatch", "--parsable", *options, str(ROOT / "launch" / template), *map(str, arguments)]
    done = cluster.call(*words, cwd=cwd, **{**environment(), **env})
    assert done.returncode == 0, done.stderr
    return Job(cluster, done.stdout.strip().split(";")[0], cwd)


def submit_training(
    cluster: Cluster, cwd: Path, config: Path, overrides: Sequence[str], *options: str, **env: str
) -> Job:
    """`launch/train.sbatch` on two nodes of one CPU rank each, unless `options` say otherwise."""
    site = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60"]
    return submit(cluster, cwd, "train.sbatch", [*site, *options], config, *overrides, **env)


class OpenEnded:
    """A run that lasts until it is stopped; after that, `finish` gives it an end. Its steps are slow on purpose."""

    overrides = (
        "data.valid=[]",
        "eval.every_steps=0",
        "eval.at_start=false",
        "train.global_batch_size=32",
        "checkpoint.every_steps=0",
    )

    def __init__(self, world: World, directory: Path) -> None:
        self._world = world
        self.config = directory / "open_ended.yaml"
        self.finish(100_000)

    def finish(self, num_steps: int) -> None:
        """The next start of the run ends after this step."""
        text = self._world.config.read_text()
        assert "train: {steps: 20," in text
        self.config.write_text(text.replace("train: {steps: 20,", f"train: {{steps: {num_steps},"))

    def undisturbed(self, run_dir: Path, layout: Layout, num_steps: int, *overrides: str) -> Path:
        """The same run without SLURM, in one go."""
        return self._world.trained(run_dir, layout, *self.overrides, f"train.steps={num_steps}", *overrides)
