"""What was drawn, step by step: `RUN/data_log.jsonl`.

Place in the flow: written on rank 0 after every step; `audit` reads it. Invariant: with the configuration it
names every sample of the run, because sample number n of a source is always the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron.data.ledger import Ledger
from cptron.errors import DataError

DATA_LOG = "data_log.jsonl"


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """Where the run stood in its sources after a step."""

    step: int
    cursors: dict[str, int]
    """Samples drawn of each source since the start of the run."""
    shares: dict[str, float]
    """Share of the tokens of each source, in force after the step."""


def log_record(step: int, ledger: Ledger, shares_before: dict[str, float]) -> dict[str, Any]:
    """The record of a step; shares are written where they changed."""
    shares = {name: entry.share for name, entry in ledger.entries.items()}
    record: dict[str, Any] = {
        "kind": "data",
        "step": step,
        "cursors": {name: entry.cursor for name, entry in ledger.entries.items()},
    }
    return record if shares == shares_before else record | {"shares": shares}


def read_log(path: Path) -> Iterator[LoggedStep]:
    """Steps in order. Raises DataError on a line that cannot be read, a step left out, or a cursor that goes
    back."""
    shares: dict[str, float] = {}
    before = LoggedStep(0, {}, {})
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    shares = record.get("shares", shares)
                    step = LoggedStep(int(record["step"]), dict(record["cursors"]), dict(shares))
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{path}:{number} must be a record of a step ({error!r}); restore it"
                    ) from None
                _check_follows(path, number, before, step)
                yield step
                before = step
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); give a run directory of cptron train") from None


def _check_follows(path: Path, number: int, before: LoggedStep, step: LoggedStep) -> None:
    if step.step != before.step + 1:
        raise DataError(
            f"{path}:{number} is step {step.step} after {before.step}, none may be left out; restore it"
        )
    back = [name for name, cursor in before.cursors.items() if step.cursors.get(name, -1) < cursor]
    if back:
        raise DataError(f"{path}:{number} has source {back[0]} behind where it was before; restore the file")
