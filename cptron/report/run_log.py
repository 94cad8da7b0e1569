"""What a run has left on disk, put in order: the last attempt at every step, what it replaced, and what happened.

Place in the flow: `html` reads each run through it. Imports no torch. Invariant: a step, and an evaluation of a step,
is there once, as the last start has made it; what a later start has repeated is in `replayed` and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cptron.checkpoint.listing import list_run
from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import CptronError, DataError
from cptron.forgetting.journal import JOURNAL, Verdict, read_verdicts
from cptron.json_text import parse_json
from cptron.report.sinks import METRICS_FILE, Record, each_record
from cptron.report.steplog import StepLog
from cptron.selection.record import read_selection


@dataclass(kw_only=True)
class RunLog:
    """One run."""

    name: str
    directory: Path
    config: Config
    steps: StepLog
    evals: list[Record]
    events: list[Record]
    """Of every other kind: start, save, stop, guard, mix; also those of attempts that were replaced."""
    replayed: list[StepLog]
    """Steps that a later start has made again, oldest attempt first; none is empty."""
    summary: dict[str, Any] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    selection: dict[str, Any] | None = None
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    """As `cptron checkpoint list` has them."""

    def of_kind(self, kind: str) -> list[Record]:
        """The events of one kind."""
        return [record for record in self.events if record["kind"] == kind]

    @property
    def last_step(self) -> int:
        """Steps done, by the log."""
        last = int(self.steps.steps[-1]) if len(self.steps) else 0
        others = [int(record["step"]) for record in [*self.evals[-1:], *self.events[-1:]]]
        return max([last, *others])

    def gaps(self) -> list[tuple[int, int]]:
        """Pairs of steps between which the log lacks records that should be there."""
        steps, every = self.steps.steps, max(1, self.config.log.every_steps)
        places = np.flatnonzero(np.diff(steps) > 1.5 * every)
        return [(int(steps[place]), int(steps[place + 1])) for place in places]

    @property
    def selected_step(self) -> int | None:
        """Step of the checkpoint that `cptron select` has chosen in this run; None without one."""
        chosen = self.selection["chosen_paths"] if self.selection else []
        inside = [
            Path(path) for path in chosen if Path(path).parent.parent.name == self.directory.resolve().name
        ]
        digits = inside[0].name.rpartition("_")[2] if len(inside) == 1 else ""
        return int(digits) if digits.isdecimal() else None


def read_run(directory: Path) -> RunLog:
    """All that a report shows. Raises `DataError` without metrics or on damaged ones, `ConfigError` when the
    configuration cannot be read."""
    metrics = directory / METRICS_FILE
    if not metrics.exists():
        raise DataError(
            f"{metrics} does not exist, so there is nothing to report; name the directory of a run"
        )
    config = load_config(directory / "config.yaml").config
    try:
        log = _read_metrics(directory, config, metrics)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{metrics} has records that the trainer does not write ({error!r:.200}); restore the file"
        ) from error
    log.summary, log.verdicts = _summary(directory / "summary.json"), read_verdicts(directory / JOURNAL)
    log.selection = read_selection(directory)
    log.checkpoints = _checkpoints(directory)
    return log


def _read_metrics(directory: Path, config: Config, path: Path) -> RunLog:
    name = config.run.name or directory.resolve().name
    log = RunLog(
        name=name, directory=directory, config=config, steps=StepLog(), evals=[], events=[], replayed=[]
    )
    last = -math.inf
    for record in each_record(path):
        kind, step = record["kind"], record["step"]
        if kind == "step":
            if step <= last:
                _go_back(log, step - 1)
            log.steps.add(record)
            last = step
            continue
        goes_back = kind == "start" or (kind == "guard" and record["event"] == "rollback")
        if goes_back and step < last:
            _go_back(log, step)
            last = step
        if kind == "eval":
            log.evals = [kept for kept in log.evals if kept["step"] < step]
            log.evals.append(record)
        else:
            log.events.append(record)
    return log


def _go_back(log: RunLog, step: int) -> None:
    """The run goes on from `step`: what came later is made again."""
    left = log.steps.cut(step)
    if len(left):
        log.replayed.append(left)
    log.evals = [kept for kept in log.evals if kept["step"] <= step]


def _summary(path: Path) -> dict[str, Any]:
    """Empty where there is none."""
    try:
        summary = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(summary, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it or remove it") from None
    return summary


def _checkpoints(directory: Path) -> list[dict[str, Any]]:
    """None where the folder is not there; one that cannot be listed is said as such."""
    if not (directory / "checkpoints").is_dir():
        return []
    try:
        return list_run(directory)
    except (OSError, CptronError) as error:
        return [{"step": "-", "tokens": "-", "bytes": "-", "state": f"cannot be listed: {error}", "kept": ""}]
