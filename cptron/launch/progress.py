"""How far a run is, from the end of its metrics.

Place in the flow: `status` shows it. Invariant: reads a bounded piece of the file however long the run is, and says
nothing of a run that has written none.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron.config.stored import read_stored
from cptron.errors import ConfigError
from cptron.json_text import parse_json

METRICS = "metrics.jsonl"
TAIL_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Progress:
    """The last that a run has said."""

    step: int
    steps: int
    """In all; 0 where it is not known."""
    loss_nats_per_token: float | None
    stopped: str
    """Why it ended; empty while it goes on, and after an end without a word."""
    age_s: float
    """Seconds since it last wrote."""


def progress_of(run: Path) -> Progress | None:
    """None where the run has not begun."""
    path = run / METRICS
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")  # parts of lines at either end are no records
        age_s = max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
    records = [record for record in map(_record, lines) if record]
    if not records:
        return None
    last = records[-1]
    losses = (record.get("loss_nats_per_token") for record in reversed(records) if record["kind"] == "step")
    loss = next(losses, None)
    return Progress(
        step=int(last["step"]),
        steps=_steps(run),
        loss_nats_per_token=float(loss) if isinstance(loss, int | float) else None,
        stopped=str(last.get("reason", "")) if last["kind"] == "stop" else "",
        age_s=age_s,
    )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    has = isinstance(record, dict) and isinstance(record.get("kind"), str) and type(record.get("step")) is int
    return record if has else None


def _steps(run: Path) -> int:
    try:
        steps = read_stored(run).get("train", {}).get("steps")
    except (ConfigError, AttributeError):
        return 0
    return int(steps) if isinstance(steps, int) else int(steps) if str(steps).isdecimal() else 0
