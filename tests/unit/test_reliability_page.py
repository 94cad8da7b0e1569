"""The table of fuzzing on docs/reliability.md is what `make fuzz` has put on record."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
RESULTS = ROOT / "benchmarks/results/fuzz.json"
HEAD = "| format | inputs | clear error | read | findings |"
COUNTS = ("inputs", "errors", "correct", "findings")


def rows_on_record() -> list[str]:
    """One row a format, over all of its readers, and their sum."""
    formats: dict[str, list[int]] = {}
    for row in json.loads(RESULTS.read_text())["rows"]:
        counts = formats.setdefault(row["format"], [0] * len(COUNTS))
        formats[row["format"]] = [count + row[name] for count, name in zip(counts, COUNTS, strict=True)]
    formats["all"] = [sum(column) for column in zip(*formats.values(), strict=True)]
    return [
        f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |" for name, counts in formats.items()
    ]


def test_page_has_the_figures_on_record() -> None:
    """All formats, in their order, and no others; every input came to one of both."""
    lines, expected = PAGE.read_text().splitlines(), rows_on_record()
    start = lines.index(HEAD) + 2
    found = lines[start : lines.index("", start)]
    assert found == expected, "the table should be:\n" + "\n".join([HEAD, "|---|---|---|---|---|", *expected])
    inputs, errors, read, findings = (int(cell.replace(",", "")) for cell in found[-1].split("|")[2:6])
    assert inputs == errors + read + findings
