"""Time and peak memory of whole processes, and the statistics of several rounds.

Place in the flow: below every row of the benchmark. Invariant: rounds are interleaved, ours and the peer in
turn, so that a machine that becomes slower meanwhile slows both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLING_INTERVAL_S = 0.1


class BenchmarkError(Exception):
    """A row cannot be measured; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """One process from start to end."""

    wall_s: float
    cpu_s: float
    """Of all cores, the processes that it started and waited for included."""
    peak_bytes: int
    """Memory of the process and all that it started, pages that they share counted once."""
    stdout: str


@dataclass(frozen=True)
class Rounds:
    """One quantity, measured several times."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, answers: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> Rounds:
        """What every answer has at `key`, times `factor`."""
        return cls(tuple(answer[key] * factor for answer in answers))

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> list[float]:
        """Smallest and largest value."""
        return [min(self.values), max(self.values)]


def run_process(words: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end. Raises BenchmarkError when it fails."""
    with _Errors() as errors:
        inherited = _status_bytes("self", "VmHWM")
        started_s = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=errors.out,
            stderr=errors.err,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        sampler = _Sampler(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        stdout, stderr = errors.read()
    if process.returncode != 0:
        reason = " / ".join((stderr.strip() or stdout.strip() or "no output").splitlines()[-2:])
        raise BenchmarkError(f"{words[1]} ended with {process.returncode}: {reason}")
    alone = usage.ru_maxrss * 1024
    if alone <= inherited:  # the kernel's peak begins with that of the process that forks, which is this one
        alone = sampler.alone_bytes
    return Run(wall_s, usage.ru_utime + usage.ru_stime, max(sampler.peak_bytes, alone), stdout)


def run_case(
    name: str, arguments: Mapping[str, object], env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run one function of `cases` in a process of its own; returns what it measured."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.data.cases", name, json.dumps(arguments)]
    answer: dict[str, Any] = json.loads(run_process(words, env).stdout.splitlines()[-1])
    return answer


def peak_bytes(**sides: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The largest peak of memory of each side, in the answers of `run_case`."""
    return {side: max(answer["peak_bytes"] for answer in answers) for side, answers in sides.items()}


def interleave(rounds: int, *sides: Callable[[], Any]) -> list[list[Any]]:
    """Call every side once a round, in turn; returns the results of each side."""
    results: list[list[Any]] = [[] for _ in sides]
    for number in range(rounds):
        for side, result in zip(sides, results, strict=True):
            result.append(side())
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return results


class _Errors:
    """Files that take what a process writes: a pipe that nobody reads would stop it."""

    def __enter__(self) -> _Errors:
        import tempfile

        self.out = tempfile.TemporaryFile("w+", errors="replace")
        self.err = tempfile.TemporaryFile("w+", errors="replace")
        return self

    def read(self) -> tuple[str, str]:
        """What was written to stdout and to stderr."""
        for file in (self.out, self.err):
            file.seek(0)
        return self.out.read(), self.err.read()

    def __exit__(self, *_: object) -> None:
        self.out.close()
        self.err.close()


class _Sampler:
    """Peaks of a process alone, and of the proportional set sizes of it and its descendants."""

    def __init__(self, pid: int) -> None:
        self.alone_bytes = self.peak_bytes = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLING_INTERVAL_S):
            self.alone_bytes = max(self.alone_bytes, _status_bytes(str(self._pid), "VmHWM"))
            children = _family(self._pid)
            if len(children) > 1:  # one process alone is measured exactly by the kernel
                self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid in children))


def _family(pid: int) -> list[int]:
    family = [pid]
    for parent in family:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                family += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue  # it, or one of its threads, ended meanwhile
    return family


def _pss_bytes(pid: int) -> int:
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _status_bytes(process: str, key: str) -> int:
    return _kilobytes(Path(f"/proc/{process}/status"), key)


def _kilobytes(path: Path, key: str) -> int:
    """Bytes that a file of the kernel says in kB, 0 where the process has ended."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
