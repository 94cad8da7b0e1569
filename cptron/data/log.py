"""What was drawn, batch by batch: `RUN/data_log.jsonl`.

Place in the flow: written on rank 0 after every step, and after every batch that was drawn and not trained on; `audit`
reads it. Invariant: with the configuration it names every sample of the run, because sample number n of a source is
always the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron.data.ledger import RETIRED, Ledger
from cptron.errors import DataError
from cptron.json_text import parse_json

DATA_LOG = "data_log.jsonl"


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """Where the run stood in its sources after a global batch."""

    step: int
    """Optimizer steps done."""
    cursors: dict[str, int]
    """Samples drawn of each source since the start of the run."""
    shares: dict[str, float]
    """Share of the tokens of each source, in force after the step."""
    mix_start: dict[str, int]
    """Samples drawn of each source when these shares were set."""
    batch: int = 0
    """Global batches drawn, with this one."""
    skipped: bool = False
    """This batch was dropped: nothing was learned from it."""


BEGINNING = LoggedStep(0, {}, {}, {})


def log_record(
    step: int, ledger: Ledger, shares_before: dict[str, float], *, batch: int, skipped: bool = False
) -> dict[str, Any]:
    """The record of a batch; shares, and the samples drawn since they were set, are written where they changed."""
    shares = {name: entry.share for name, entry in ledger.entries.items()}
    record: dict[str, Any] = {
        "kind": "skipped" if skipped else "data",
        "step": step,
        "batch": batch,
        "cursors": {name: entry.cursor for name, entry in ledger.entries.items()},
    }
    if shares == shares_before:
        return record
    since_mix = {name: entry.since_mix for name, entry in ledger.entries.items()}
    return record | {"shares": shares, "since_mix": since_mix}


def read_log(path: Path) -> Iterator[LoggedStep]:
    """Batches in order; a last line that was cut off is left out, as a resume does. Raises DataError on a line
    that cannot be read, a step or batch left out, a cursor that goes back, or shares set at another time."""
    before = BEGINNING
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    step = _parsed(parse_json(line), before)
                except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
                    raise DataError(
                        f"{path}:{number} must be a record of a step ({error!r}); restore it"
                    ) from None
                _check_follows(path, number, before, step)
                yield step
                before = step
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); give a run directory of cptron train") from None


def _parsed(record: dict[str, Any], before: LoggedStep) -> LoggedStep:
    cursors: dict[str, int] = record["cursors"]
    since_mix: dict[str, int] = record.get("since_mix", {})
    if record["kind"] not in ("data", "skipped"):
        raise TypeError(f"kind {record['kind']!r} must be data or skipped")
    for number in (record["step"], record["batch"], *cursors.values(), *since_mix.values()):
        if type(number) is not int or number < 0:
            raise TypeError(f"{number!r} must be an integer from 0")
    mix_start = {name: cursors[name] - since for name, since in since_mix.items()}
    shares = {name: float(share) for name, share in record.get("shares", before.shares).items()}
    where = mix_start or before.mix_start
    return LoggedStep(
        record["step"], dict(cursors), shares, where, record["batch"], record["kind"] == "skipped"
    )


def _check_follows(path: Path, number: int, before: LoggedStep, step: LoggedStep) -> None:
    if (step.step, step.batch) != (before.step + (not step.skipped), before.batch + 1):
        raise DataError(
            f"{path}:{number} is step {step.step} and batch {step.batch} after step {before.step} and batch "
            f"{before.batch}, none may be left out; restore it"
        )
    closed = sorted(name for name in step.cursors.keys() - before.cursors.keys() if RETIRED in name)
    if closed:
        raise DataError(
            f"{path}:{number} goes on with {closed} closed and new accounts in their place, by a change that "
            "run.accept_changes named; a log is proven up to such a step, not across it"
        )
    back = [name for name, cursor in before.cursors.items() if step.cursors.get(name, -1) < cursor]
    if back:
        raise DataError(f"{path}:{number} has source {back[0]} behind where it was before; restore the file")
    # shares are set between two steps, or within this one
    same = (step.mix_start, step.shares) == (before.mix_start, before.shares)
    earlier = any(start < before.cursors.get(name, 0) for name, start in step.mix_start.items())
    if not step.cursors.keys() == step.shares.keys() == step.mix_start.keys() or (earlier and not same):
        raise DataError(
            f"{path}:{number} has shares set at samples {step.mix_start}, not after the step before; restore the file"
        )
