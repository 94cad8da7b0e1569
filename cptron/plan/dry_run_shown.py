"""A dry run as text.

Place in the flow: `main` prints these lines of the record that `--json` prints. Invariant: each rank's traced bytes
stand beside the formula's, with what the formula differs by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cptron.plan.dry_run import CATEGORIES
from cptron.report.console import table

GIB = 2**30
Facts = Mapping[str, Any]


def dry_run_lines(record: Facts) -> list[str]:
    """The whole record."""
    lines = [
        f"dry run  {record['layout']} of {record['world_size']} ranks; torch {record['torch']}, megatron-core "
        f"{record['megatron_core']}, kernels of {record['kernels']}",
        *(f"note     {note}" for note in record["notes"]),
    ]
    for facts in record["ranks"]:
        lines += ["", *_rank(facts, record["gpu"])]
    return lines


def _rank(facts: Facts, gpu: Facts | None) -> list[str]:
    rows = [
        [
            name.replace("_", " "),
            f"{_traced(facts, name) / GIB:.3f}",
            f"{_planned(facts, name) / GIB:.3f}",
            _percent(facts["planned_over_traced"][name]),
        ]
        for name in (*CATEGORIES, "activations_and_working", "allocated")
    ]
    left = facts["left_bytes"]
    fits = f"; fits {gpu['name']}, {left / GIB:.1f} GiB left" if gpu and left is not None else ""
    return [
        f"rank {facts['rank']} ({facts['place']}): {facts['traced']['total'] / GIB:.1f} GiB on the GPU{fits}; fullest "
        f"in {facts['fullest_in']}, {facts['micro_batches_traced']} of {facts['micro_batches']} micro-batches traced "
        f"in {facts['cpu_s']:.0f} s of CPU time",
        *table(["", "GiB traced", "GiB by formula", "formula %"], rows).splitlines(),
    ]


def _traced(facts: Facts, name: str) -> float:
    return _of(facts["traced"], name)


def _planned(facts: Facts, name: str) -> float:
    return _of(facts["planned"], name)


def _of(values: Facts, name: str) -> float:
    if name == "activations_and_working":
        return float(values["activations"] + values["working"])
    return float(values[name])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"
