"""The steps of a log that a calibration may use: of one layout, of one stage of the run, and warmed up.

Place in the flow: `calibrate` reads logs through it. Invariant: what is used and what is left out together are all
steps of the log; steps of another layout or number of ranks than the last start's are never used.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cptron.errors import DataError
from cptron.report.sinks import Record, read_records

LEFT_OUT = 5
"""Steps after each start, which warm up caches, compilers and pages."""
LEAST_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """Steps that can be compared with each other."""

    steps: tuple[Record, ...]
    left_out: int
    stage: int
    """Of the run's stages, the one that has most steps."""
    layout: str
    """As the start says it; empty where it does not."""
    world_size: int
    """Ranks; 0 where the log does not say."""
    on_gpus: bool


def steady_steps(path: Path) -> Steady:
    """Those of `metrics.jsonl`. Raises `DataError` where there are too few, or a time is none."""
    if not path.is_file():
        raise DataError(f"--calibrate {path} does not exist; name the metrics.jsonl of a run")
    start: Record = {}
    since_start, before, seen = 0, 0, 0
    kept: list[Record] = []
    for record in read_records(path):
        if record["kind"] == "start":
            since_start = 0
            if _place(record) != _place(start):
                kept.clear()
            start = record
        if record["kind"] != "step":
            continue
        if record["step"] <= before:
            since_start = 0  # gone back: a restart without a record of it
        before = record["step"]
        number_of(path, record, "step_time_s")
        since_start += 1
        seen += 1
        if since_start > LEFT_OUT:
            kept.append(record)
    stages = Counter(_stage(record) for record in kept)
    stage = stages.most_common(1)[0][0] if stages else 0
    used = tuple(record for record in kept if _stage(record) == stage)
    if len(used) < LEAST_STEPS:
        raise DataError(
            f"{path} has {len(used)} steps of one layout after warming up ({seen - len(used)} left out), must have "
            f"at least {LEAST_STEPS}; train longer"
        )
    layout, world_size = _place(start)
    return Steady(
        steps=used,
        left_out=seen - len(used),
        stage=stage,
        layout=layout,
        world_size=world_size,
        on_gpus=start.get("device") != "cpu",
    )


def _place(start: Record) -> tuple[str, int]:
    layout, world_size = start.get("layout"), start.get("world_size")
    return (
        layout if isinstance(layout, str) else "",
        world_size if type(world_size) is int and world_size > 0 else 0,
    )


def _stage(record: Record) -> int:
    stage = record.get("stage", 0)
    return stage if type(stage) is int and stage >= 0 else 0


def number_of(path: Path, record: Record, key: str) -> float:
    """A measured number above 0. Raises `DataError`."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(
            f"{path}: step {record['step']} has {key}={value!r:.40}, must be a number above 0; use a log "
            "of cptron train"
        )
    return float(value)
