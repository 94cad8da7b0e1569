"""Real `cptron` processes for tests, always with a time limit, and readers of what they leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cptron.report.sinks import read_records

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SAME = ("step", "tokens_total", "loss_nats_per_token", "lr", "grad_norm")
"""Values of a step that do not depend on the clock, beside those of the sources."""
EXACT = ("kind", "step", "tokens_total", "lr")


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without a launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **changes}


def call(
    words: Sequence[str | Path], timeout_s: float, *, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; past the limit its whole process group is killed and the test fails."""
    with started(words, cwd=cwd, **env) as process:
        stdout, stderr = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(list(words), process.returncode, stdout, stderr)


@contextlib.contextmanager
def started(words: Sequence[str | Path], *, cwd: Path = ROOT, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A running command in a process group of its own, which is gone when the context ends."""
    process = subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**env),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_group(process)
        process.wait(timeout=120)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def cptron(*arguments: str | Path) -> list[str | Path]:
    """Words of a `cptron` command."""
    return [sys.executable, "-m", "cptron.cli", *arguments]


def error_lines(stderr: str) -> list[str]:
    """The lines that `cptron` itself wrote about an error."""
    return [line for line in stderr.splitlines() if line.startswith("cptron: error")]


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Records of a kind in `metrics.jsonl`, in order."""
    return [record for record in read_records(run_dir / "metrics.jsonl") if record["kind"] == kind]


def steps(run_dir: Path, after: int = 0) -> list[dict[str, Any]]:
    """What each step computed, without times and memory."""
    return [
        {key: value for key, value in record.items() if key in SAME or "/" in key}
        for record in records(run_dir, "step")
        if record["step"] > after
    ]


def evals(run_dir: Path) -> list[dict[str, Any]]:
    """What each evaluation computed."""
    return records(run_dir, "eval")


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a directory."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    }


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Counts and rates equal, computed values within 1e-4."""
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            exact = key in EXACT or key.startswith("tokens/") or key.endswith("/tokens")
            wanted = value if exact else pytest.approx(value, rel=1e-4)
            assert ours[key] == wanted, f"step {theirs['step']}: {key} is {ours[key]}, not {wanted}"
