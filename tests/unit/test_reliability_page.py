"""The figures on docs/reliability.md are those that `make faults` and `make fuzz` have put on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
RESULTS = ROOT / "benchmarks/results"
FUZZ_HEAD = "| format | inputs | clear error | read | findings |"
COUNTS = ("inputs", "errors", "correct", "findings")
FAULTS_HEAD = "| fault | injected | detected | survived | steps lost: median, most | at most |"


def table_on_page(head: str) -> list[str]:
    """The rows below this head."""
    lines = PAGE.read_text().splitlines()
    start = lines.index(head) + 2
    return lines[start : lines.index("", start)]


def fuzz_rows() -> list[str]:
    """One row a format, over all of its readers, and their sum."""
    formats: dict[str, list[int]] = {}
    for row in json.loads((RESULTS / "fuzz.json").read_text())["rows"]:
        counts = formats.setdefault(row["format"], [0] * len(COUNTS))
        formats[row["format"]] = [count + row[name] for count, name in zip(counts, COUNTS, strict=True)]
    formats["all"] = [sum(column) for column in zip(*formats.values(), strict=True)]
    return [
        f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |" for name, counts in formats.items()
    ]


def faults_row(row: dict[str, Any]) -> str:
    """Counts, and the most of what was measured."""
    lost = f"{row['lost_steps']['median']:g}, {row['lost_steps']['max']}" if row["lost_steps"] else "-"
    most = ", ".join(_in_words(name, value["max"]) for name, value in row["measured"].items())
    detected = "-" if row["detected"] is None else row["detected"]
    cells = [row["fault"], row["injected"], detected, row["survived"], lost, most or "-"]
    return f"| {' | '.join(map(str, cells))} |"


def _in_words(name: str, value: float) -> str:
    if name.endswith("_s"):
        return f"{name.removesuffix('_s').replace('_', ' ')} {value:.1f} s"
    return f"{name} {value:.1e}"


def test_fuzzing_on_record() -> None:
    """All formats, in their order, and no others; every input came to one of both."""
    found, expected = table_on_page(FUZZ_HEAD), fuzz_rows()
    assert found == expected, "the table should be:\n" + "\n".join(
        [FUZZ_HEAD, "|---|---|---|---|---|", *expected]
    )
    inputs, errors, read, findings = (int(cell.replace(",", "")) for cell in found[-1].split("|")[2:6])
    assert inputs == errors + read + findings


def test_faults_on_record() -> None:
    """All faults that are injected, none twice, each survived whenever it was injected."""
    rows = json.loads((RESULTS / "faults.json").read_text())
    expected = [faults_row(row) for row in rows]
    assert table_on_page(FAULTS_HEAD) == expected, "the table should be:\n" + "\n".join(
        [FAULTS_HEAD, "|---|---|---|---|---|---|", *expected]
    )
    assert all(row["survived"] == row["injected"] and not row["failed"] for row in rows)
