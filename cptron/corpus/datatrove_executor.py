"""Units of work on an executor of datatrove: Ray, where one machine is outgrown and a Ray cluster is there.

Place in the flow: in place of the local executor, for `cptron curate --executor ray`.
Invariant: datatrove only says where a unit is done; whether it is done is told by its files, as anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cptron.corpus.optional import optional_module
from cptron.corpus.work import Unit, Work
from cptron.errors import DataError

Make = Callable[[list[Any], int, str], Any]
"""An executor of datatrove, of a pipeline, a number of tasks and a directory for its logs."""


@dataclass(frozen=True, slots=True)
class _Tasks:
    """A pipeline step of datatrove: task number n is unit number n."""

    work: Work
    units: Sequence[Unit]

    def __call__(self, data: Any, rank: int, world_size: int) -> Iterator[Any]:
        self.work.do(self.units[rank])
        return iter(())


class DatatroveExecutor:
    """Does units by the executor that `make` gives."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def run(self, work: Work, units: Sequence[Unit], shown: str, done_bytes: int) -> None:
        """See `Executor`."""
        if not units:
            return
        logs = work.directory / "datatrove"
        self._make([_Tasks(work, units)], len(units), str(logs)).run()
        missing = [unit for unit in units if not work.is_done(unit)]
        if missing:
            raise DataError(
                f"{shown}: {len(missing)} of {len(units)} units are not done, such as {missing[0].number}; see {logs}, "
                "and run the same command again, it goes on"
            )


def ray_executor(workers: int) -> DatatroveExecutor:
    """Tasks on the Ray cluster that this process is connected to, or on this machine. Raises DataError without Ray."""
    optional_module("ray", "ray", "--executor ray")
    module = optional_module("datatrove.executor.ray", "datatrove", "--executor ray")

    def make(pipeline: list[Any], tasks: int, logs: str) -> Any:
        return module.RayPipelineExecutor(
            pipeline=pipeline, tasks=tasks, workers=workers, logging_dir=logs, skip_completed=False
        )

    return DatatroveExecutor(make)
