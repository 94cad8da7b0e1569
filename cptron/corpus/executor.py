"""Who does the units of work: this process, or several on this machine.

Place in the flow: `run` hands over what is missing. Invariant: a unit that fails or a worker that dies ends the run
with an error that names it, never with a wait; workers never outlive the process that started them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

from cptron.corpus.work import Unit, Work
from cptron.errors import DataError

_LOG_INTERVAL_S = 10.0
_work: Work | None = None
"""Of a worker process."""


class Executor(Protocol):
    """Does units in any order."""

    def run(self, work: Work, units: Sequence[Unit], shown: str, done_bytes: int) -> None:
        """Do all of `units`; `shown` and the bytes that are done already are for the progress bar. Raises a
        `CptronError`."""


def bar_of(units: Sequence[Unit], shown: str, done_bytes: int, *, enabled: bool = True) -> tqdm:
    """Over the input's bytes, those that are done already included; on a terminal, and now and then in a log."""
    return tqdm(
        total=done_bytes + sum(unit.weight for unit in units),
        initial=done_bytes,
        unit="B",
        unit_scale=True,
        desc=shown,
        disable=not enabled,
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else _LOG_INTERVAL_S,
    )


class LocalExecutor:
    """`workers` processes, started when they are first needed; one alone does the work in this process. A context
    manager."""

    def __init__(self, workers: int, *, progress: bool = True) -> None:
        self._workers = workers
        self._progress = progress
        self._pool: ProcessPoolExecutor | None = None
        self._pool_work: Work | None = None
        self._children: set[BaseProcess] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            for child in self._children if error else ():
                child.kill()  # a unit that is cut off is done again; nothing has to be waited for
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, work: Work, units: Sequence[Unit], shown: str, done_bytes: int) -> None:
        """See `Executor`."""
        with bar_of(units, shown, done_bytes, enabled=self._progress and bool(units)) as bar:
            if self._workers == 1 or len(units) <= 1:
                for unit in units:
                    work.do(unit)
                    bar.update(unit.weight)
            else:
                self._in_processes(self._started(work), units, bar)

    def _started(self, work: Work) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool_work = work
            self._pool = ProcessPoolExecutor(
                self._workers, context, initializer=_start_worker, initargs=(work,)
            )
        assert self._pool_work is work
        return self._pool

    def _in_processes(self, pool: ProcessPoolExecutor, units: Sequence[Unit], bar: tqdm) -> None:
        others = set(multiprocessing.active_children()) - self._children
        try:
            waiting = {pool.submit(_do, unit): unit for unit in units}
        except BrokenProcessPool:  # a worker was killed just before, perhaps while none had work
            raise _killed(units) from None
        self._children = set(multiprocessing.active_children()) - others
        for future, unit in waiting.items():
            future.add_done_callback(lambda done, unit=unit: _count(done, unit, bar))  # type: ignore[misc]
        finished, _ = wait(waiting, return_when=FIRST_EXCEPTION)
        errors = [error for future in finished if (error := future.exception()) is not None]
        if not errors:
            return
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(errors[0], BrokenProcessPool):
            raise _killed(units) from None
        raise errors[0]


def _killed(units: Sequence[Unit]) -> DataError:
    return DataError(
        f"a worker was killed at one of {len(units)} shards, perhaps for want of memory; use fewer --workers, and run "
        "the same command again, it goes on"
    )


def _count(done: Future[None], unit: Unit, bar: tqdm) -> None:
    if not done.cancelled() and done.exception() is None:
        bar.update(unit.weight)


def _start_worker(work: Work) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to all; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=die_with_parent, name="parent", daemon=True).start()


def _do(unit: Unit) -> None:
    assert _work is not None
    _work.do(unit)
