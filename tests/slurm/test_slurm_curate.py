"""A curation in jobs of a real scheduler: the bytes of the one without, whatever happened to its jobs on the way."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from corpus_world import config_of, files_of, lines_of, run, text_of
from slurm_cluster import NODES, Cluster
from slurm_jobs import JOB_S, Job, environment

from cptron.corpus.load import load_curation
from cptron.corpus.run import prepare
from cptron.corpus.work import shard_path

STEPS = [
    {"step": "length", "min_words": 5},
    {"step": "near_duplicates"},
    {"step": "length", "name": "last", "max_words": 1000},
]
SITE = (
    "--parts",
    "2",
    "--cpus-per-task",
    "1",
    "--time",
    "1h",
    "--partition",
    "main",
    "--sbatch",
    "exclusive",
)
NUM_JOBS = 4
"""Two stages, each an array and its end."""


@dataclass(frozen=True)
class Curation:
    """One on the cluster, submitted from a folder of its own."""

    cluster: Cluster
    cwd: Path

    @property
    def output(self) -> Path:
        """Where the corpus is made."""
        return self.cwd / "out"

    def call(self, *words: str) -> tuple[int, str, str]:
        """Exit code and what `cptron curate` says."""
        env = {**environment(), "CPTRON_JOBS": str(self.cwd / "list.jsonl"), "XDG_CONFIG_HOME": str(self.cwd)}
        command = [sys.executable, "-m", "cptron.cli", *words]
        done = self.cluster.call(*command, cwd=self.cwd, timeout_s=240, **env)
        return done.returncode, done.stdout, done.stderr

    def submitted(self, *words: str) -> list[Job]:
        """The jobs, in order."""
        code, said, errors = self.call("curate", "c.yaml", "--executor", "slurm", *SITE, *words)
        assert code == 0, errors
        jobs = [Job(self.cluster, found, self.cwd) for found in re.findall(r"submitted job (\d+)", said)]
        assert len(jobs) == NUM_JOBS
        return jobs

    def log(self, name: str) -> str:
        """Of a job, or of a task of an array."""
        (path,) = (self.cwd / "jobs").glob(f"*-{name}.out")
        return path.read_text()

    def ended(self, what: str) -> None:
        """Wait until no job is in the queue."""
        end_s = time.monotonic() + JOB_S
        while self.cluster.run("squeue", "--noheader"):
            assert time.monotonic() < end_s, f"{what}: {self.cluster.run('squeue')}"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A few hundred documents with near-duplicates of each other."""
    texts = [f"{text_of(number % 400, 80)} Copy {number // 400}." for number in range(600)]
    path = tmp_path_factory.mktemp("raw") / "a.jsonl"
    path.write_bytes(lines_of(texts))
    return {"web": [str(path)]}


@pytest.fixture(scope="module")
def whole(raw: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run without SLURM."""
    output = tmp_path_factory.mktemp("whole") / "out"
    manifest = run(config_of(output, raw, STEPS, shard_bytes=20_000))
    assert manifest.documents == 400 and len(manifest.files) > 8
    return files_of(output)


@pytest.fixture
def curation(cluster: Cluster, raw: dict[str, list[str]], tmp_path: Path) -> Curation:
    """Not submitted yet."""
    config = config_of(tmp_path / "out", raw, STEPS, shard_bytes=20_000)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return Curation(cluster, tmp_path)


@pytest.mark.more
def test_failing_task_and_going_on(curation: Curation, whole: dict[str, bytes]) -> None:
    """One shard of one task cannot be written: one line says so, the other task does its part on the other node, no
    later job is started and none is left; the same command goes on, and ends with the bytes of a run without SLURM."""
    work = prepare(load_curation(curation.cwd / "c.yaml"))
    obstacle = shard_path(work.directory / work.stages[0].name, 1)  # of task 1
    obstacle.mkdir()
    array, *later = curation.submitted()
    curation.ended("after a failed task")
    tasks = [Job(array.cluster, f"{array.number}_{task}", curation.cwd) for task in range(2)]
    assert [task.state for task in tasks] == ["COMPLETED", "FAILED"]
    assert {task.field("NodeList") for task in tasks} == set(NODES)
    assert tasks[1].field("ExitCode") == "2:0"
    lines = [line for line in curation.log(f"{array.number}_1").splitlines() if "error" in line]
    assert lines[0].startswith("cptron: error") and "Is a directory" in lines[0], lines
    assert "Traceback" not in curation.log(f"{array.number}_1")
    assert [job.state for job in later] == ["CANCELLED"] * 3
    assert not list(curation.cwd.glob(f"jobs/*-{later[0].number}.out"))
    done = {path: path.stat().st_mtime_ns for path in obstacle.parent.glob("*.json")}
    assert len(done) >= 5, "what the other task did"
    obstacle.rmdir()
    *_, last = curation.submitted()
    last.wait("COMPLETED")
    assert files_of(curation.output) == whole
    assert {path: path.stat().st_mtime_ns for path in done} == done, "none of it was done again"
    assert "400 documents" in curation.log(last.number)


@pytest.mark.more
@pytest.mark.parametrize("stage", [0, 1])
def test_cancelled_and_submitted_again(stage: int, curation: Curation, whole: dict[str, bytes]) -> None:
    """`scancel` of all, while the tasks of a stage are at work: submitted again, it goes on to the same bytes."""
    jobs = curation.submitted()
    jobs[2 * stage].until(lambda: bool(list(curation.output.glob(f".work/{stage}-*/*.json"))), "at work")
    curation.cluster.run("scancel", *(job.number for job in jobs))
    curation.ended("after scancel")
    assert not (curation.output / "manifest.json").exists() and jobs[-1].state == "CANCELLED"
    *_, last = curation.submitted()
    last.wait("COMPLETED")
    assert files_of(curation.output) == whole


@pytest.mark.more
def test_refused_and_cancelled(curation: Curation) -> None:
    """A partition that is not there is one line, and no job is left. Jobs that wait are not submitted a second time;
    `cptron cancel` of one of them ends them all."""
    code, said, errors = curation.call("curate", "c.yaml", "--executor", "slurm", "--partition", "gpu_long")
    assert code == 2 and "partitions here: main" in errors and "submitted job" not in said
    jobs = curation.submitted("--sbatch", "hold")
    code, _, errors = curation.call("curate", "c.yaml", "--executor", "slurm", *SITE)
    assert code == 2 and f"{NUM_JOBS} jobs that wait or run" in errors and jobs[0].number in errors, errors
    assert curation.call("status", jobs[0].number)[0] == 0
    assert curation.call("cancel", jobs[0].number)[0] == 0
    curation.ended("after cancel")
    assert [job.state for job in jobs] == ["CANCELLED"] * NUM_JOBS
