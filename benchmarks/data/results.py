"""Rows of the result: one JSON object each, kept in `benchmarks/results/data.json`, and the table that people read.

Place in the flow: every row of the benchmark ends here. Invariant: a row that is measured again replaces its
older self and nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.data.measure import ROOT
from cptron.durable import replace_text

RESULTS = ROOT / "benchmarks" / "results" / "data.json"
PACKAGES = (
    "cptron",
    "numpy",
    "tokenizers",
    "gigatoken",
    "snaptokens",
    "megatron-core",
    "torch",
    "transformers",
)
MAX_COLUMN = 64


def machine() -> str:
    """CPU, number of cores and memory."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB, {platform.system()}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def command_line(words: Sequence[str]) -> str:
    """The command that measures a row again; of a machine's own folders only the name is kept."""
    shown = [f"[...]/{Path(word).name}" if Path(word).is_absolute() else word for word in words]
    return " ".join(["python -m benchmarks.data.run", *shown])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. `ratio` says how many times better ours is, whatever the direction of the unit."""

    row: str
    """Number of the row, and a letter for its parts."""
    work: str
    peer: str = "-"
    unit: str
    ours: float
    peer_value: float | None = None
    ratio: float | None = None
    goal: str = "none"
    met: bool | None = None
    """None where the row has no goal."""
    input: str
    rounds: int
    spread: dict[str, list[float]] = field(default_factory=dict)
    """Smallest and largest value of `ours` and of `peer`."""
    memory: dict[str, int] = field(default_factory=dict)
    """Peak bytes of `ours` and of `peer`; see README.md for what is counted in which row."""
    peer_versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
    machine: str = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    command: str = field(default_factory=lambda: command_line(sys.argv[1:]))
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    load_average: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    """Of the machine when the row was finished; a busy machine shows."""


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """All rows on record."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def merge(new: Sequence[Row], path: Path = RESULTS) -> list[dict[str, Any]]:
    """Put rows on record; returns all rows, sorted."""
    rows = {row["row"]: row for row in read(path)}
    rows |= {row.row: asdict(row) for row in new}
    ordered = [rows[name] for name in sorted(rows, key=_sort_key)]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")
    return ordered


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows for people, in a monospaced font."""
    cells = [("row", "work", "ours", "peer", "unit", "ratio", "goal", "met", "peak MB ours/peer")]
    for row in rows:
        memory = "/".join(
            f"{row['memory'][side] / 1e6:,.0f}" if side in row["memory"] else "-" for side in ("ours", "peer")
        )
        cells.append(
            (
                row["row"],
                row["work"],
                _with_spread(row["ours"], row["spread"].get("ours")),
                "-"
                if row["peer_value"] is None
                else _with_spread(row["peer_value"], row["spread"].get("peer")),
                row["unit"],
                "-" if row["ratio"] is None else f"{row['ratio']:.3g}x",
                row["goal"],
                {True: "yes", False: "NO", None: "-"}[row["met"]],
                memory,
            )
        )
    widths = [min(MAX_COLUMN, max(len(line[column]) for line in cells)) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    )


def _with_spread(value: float, spread: Sequence[float] | None) -> str:
    around = f" [{spread[0]:.4g} to {spread[1]:.4g}]" if spread and spread[0] != spread[1] else ""
    return f"{value:.4g}{around}"


def _sort_key(name: str) -> tuple[int, str]:
    digits = "".join(character for character in name if character.isdigit())
    return int(digits or 0), name
