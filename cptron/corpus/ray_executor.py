"""Units of work as tasks of a Ray cluster, where one machine is outgrown and a cluster is there.

Place in the flow: in place of the local executor, for `cptron curate --executor ray`. datatrove's own Ray executor is
not used: it makes an actor, a placement group and a pool of one process for each task, and waits for ever when that
process is killed. Invariant: Ray only says where a unit is done; a unit that fails ends the run with the unit's own
error, and one whose worker died is done again, a few times.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from cptron.corpus.executor import bar_of
from cptron.corpus.optional import optional_module
from cptron.corpus.work import Unit, Work
from cptron.errors import CptronError, DataError

RETRIES = 3
"""Times that a unit is done again whose worker died."""
_AHEAD = 4
"""Units given to Ray at a time for each core of the cluster, unless workers are limited: none of them is ever idle."""
_here: dict[str, Work] = {}
"""Of a worker: the work of the run that it works for; steps that are open stay open."""


class RayExecutor:
    """`workers` units at a time, 0 for as many as the cluster has cores. A context manager: connected to the cluster
    that RAY_ADDRESS or `ray start` names, else to one of this machine that ends with it."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._name = uuid.uuid4().hex
        self._stored: Any = None
        self._connected = False

    def __enter__(self) -> Self:
        self._ray: Any = optional_module("ray", "ray", "--executor ray")
        if not self._ray.is_initialized():
            try:
                self._ray.init(log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # Ray's own have no class in common
                raise DataError(
                    f"Ray cannot be reached or started ({_first_line(error)}); see `ray status`, or leave out "
                    "--executor ray"
                ) from None
            self._connected = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connected:
            self._ray.shutdown()

    def run(self, work: Work, units: Sequence[Unit], shown: str, done_bytes: int) -> None:
        """See `Executor`."""
        if not units:
            return
        if self._stored is None:
            self._stored = [self._ray.put(work)]  # in a list Ray hands on the reference, not the work
        with bar_of(units, shown, done_bytes) as bar:
            self._all_done(iter(units), bar)

    def _all_done(self, units: Iterator[Unit], bar: tqdm) -> None:
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        limit = self._workers or _AHEAD * max(1, cores)
        task = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
        waiting: dict[Any, Unit] = {}
        try:
            while True:
                while len(waiting) < limit and (unit := next(units, None)):
                    waiting[task.remote(self._name, self._stored, unit)] = unit
                if not waiting:
                    return
                done, _ = self._ray.wait(list(waiting), num_returns=1)
                for reference in done:
                    self._check(reference, waiting[reference])
                    bar.update(waiting.pop(reference).weight)
        finally:
            for reference in waiting:
                self._ray.cancel(reference, force=True)

    def _check(self, reference: Any, unit: Unit) -> None:
        """Raise the error of a unit that was not done."""
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CptronError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise DataError(
                f"shard {unit.number}: its worker died {RETRIES + 1} times, perhaps for want of memory "
                f"({_first_line(error)}); run the same command again, it goes on"
            ) from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _do(name: str, stored: Sequence[Any], unit: Unit) -> None:
    """In a worker of the cluster."""
    if name not in _here:
        ray: Any = optional_module("ray", "ray", "--executor ray")
        _here.clear()
        _here[name] = ray.get(stored[0])
    _here[name].do(unit)
