"""Rows of the result, one for each fault, kept in `benchmarks/results/faults.json`, and the table that people read.

Place in the flow: every counted fault ends here. Invariant: a row that is counted again replaces its older self and
nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from faults.injection.trials import Count

from benchmarks.data import results as common
from benchmarks.data.measure import ROOT
from cptron.durable import replace_text

RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
Row = dict[str, Any]


def row(count: Count, seed: int) -> Row:
    """What is put on record: the counts, and where and with what they were made."""
    words = common.command_line(sys.argv[1:]).replace("benchmarks.data.run", "faults.injection")
    return {
        **count.row(),
        "seed": seed,
        "machine": common.machine(),
        "versions": {
            name: common.versions()[name] for name in ("python", "cptron", "torch", "megatron-core")
        },
        "command": f"PYTHONPATH=tests {words}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def read(path: Path) -> list[Row]:
    """All rows on record."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def merge(new: Sequence[Row], path: Path) -> None:
    """Put rows on record."""
    rows = {found["fault"]: found for found in [*read(path), *new]}
    replace_text(path, json.dumps(list(rows.values()), indent=1, ensure_ascii=False) + "\n")


def _first_hits(hits: dict[str, int]) -> Counter[str]:
    """By where the first of a trial's strikes hit; of `saving, then loading` it is `saving`."""
    first: Counter[str] = Counter()
    for name, count in hits.items():
        first[name.split(", then ")[0]] += count
    return first


def table(rows: Sequence[Row]) -> str:
    """Rows for people, in Markdown."""
    lines = [
        "| fault | injected | detected | survived | lost steps: median, most | struck |",
        "|---|---|---|---|---|---|",
    ]
    for found in rows:
        lost = found["lost_steps"]
        struck = ", ".join(f"{name} {count}" for name, count in _first_hits(found["hit"]).items())
        measured = "; ".join(
            f"{name} at most {value['max']:.3g}" for name, value in found["measured"].items()
        )
        cells = [
            f"{found['fault']}: {found['what']}",
            f"{found['injected']} ({found['not_injected']})"
            if found["not_injected"]
            else str(found["injected"]),
            "-" if found["detected"] is None else str(found["detected"]),
            str(found["survived"]),
            f"{lost['median']:g}, {lost['max']:g}" if lost else "-",
            "; ".join(filter(None, [struck, measured])) or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
