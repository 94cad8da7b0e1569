"""Ranks of `cptron train` as real processes that start in milliseconds: forked from one that has imported everything.

Place in the flow: below every trial. Invariant: each rank is a session of its own, and whatever a rank has started is
gone when the context of its run ends.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cptron.testing import claimed_port

PRELOAD = "faults.injection.preload"
END_S = 180.0
"""A run that has not ended after so long hangs."""


@dataclass
class Ranks:
    """The processes of one start of a run, by rank, and where each writes what it says."""

    processes: list[BaseProcess]
    logs: list[Path]
    started_s: float = field(default_factory=time.monotonic)

    def wait(self, limit_s: float = END_S) -> list[int]:
        """Exit codes by rank once all have ended. Raises AssertionError where one has not by then."""
        deadline = time.monotonic() + limit_s
        while waiting := [process.sentinel for process in self.processes if process.exitcode is None]:
            left = deadline - time.monotonic()
            running = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
            assert left > 0, f"rank(s) {running} have not ended within {limit_s:g} s"
            connection.wait(waiting, left)
        return [int(process.exitcode or 0) for process in self.processes]

    def ended(self) -> bool:
        """Whether every rank has ended."""
        return all(process.exitcode is not None for process in self.processes)

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to the processes of these ranks alone, by default to those of all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            if (process := self.processes[rank]).exitcode is None:
                os.kill(_pid(process), number)

    def kill(self, ranks: Sequence[int] | None = None) -> None:
        """SIGKILL to these ranks and all that they have started, by default to all ranks at once."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(_pid(self.processes[rank]), signal.SIGKILL)
            self.processes[rank].kill()  # where it was too young to have a group

    def end(self) -> None:
        """Kill what still runs, and wait until it has gone."""
        self.kill()
        for process in self.processes:
            process.join(END_S)

    def text(self, rank: int = 0) -> str:
        """What a rank has said so far."""
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].exists() else ""

    def errors(self) -> list[str]:
        """The error lines of all ranks; one that another rank has stopped says so in its own words."""
        lines = [line for rank in range(len(self.logs)) for line in self.text(rank).splitlines()]
        return [line for line in lines if line.startswith(("cptron: error", "cptron: [rank"))]


def _pid(process: BaseProcess) -> int:
    assert process.pid is not None
    return process.pid


@functools.cache
def serve() -> None:
    """Start the process that ranks are forked from, and wait until it is ready. It knows where the tests are by
    PYTHONPATH."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    first = context.Process(target=check_preload)
    first.start()
    first.join(END_S)
    assert first.exitcode == 0, "the process that ranks are forked from has not imported the trainer"


@contextlib.contextmanager
def training(
    words: Sequence[str], world_size: int, logs: Path, change: str = "", **given: object
) -> Iterator[Ranks]:
    """`cptron train WORDS` on so many ranks, each of which writes what it says into `logs`; `change` names a function
    of `changes` that every rank calls first."""
    serve()
    logs.mkdir(parents=True, exist_ok=True)
    number = len(list(logs.iterdir()))
    running = Ranks([], [])
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(claimed_port())
        stack.callback(running.end)
        for rank in range(world_size):
            log = logs / f"{number:03d}_rank{rank}.txt"
            process = multiprocessing.get_context("forkserver").Process(
                target=be_rank, args=(list(words), rank, world_size, port, str(log), change, given)
            )
            process.start()
            running.processes.append(process)
            running.logs.append(log)
        yield running


def check_preload() -> None:
    """Runs in a forked process: fail where it would have to import torch itself."""
    assert PRELOAD in sys.modules and "cptron.train.setup" in sys.modules


def be_rank(
    words: list[str], rank: int, world_size: int, port: int, log: str, change: str, given: dict[str, Any]
) -> None:
    """The life of a rank; runs in the forked process and ends it with the command's exit code."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if change:
        from faults.injection import changes

        getattr(changes, change)(rank, **given)
    from cptron.cli import main

    sys.exit(main(["train", *words]))
