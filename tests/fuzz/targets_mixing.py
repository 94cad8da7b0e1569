"""Targets: what is kept of mixtures: an online mixer's journal, tables of measured runs, and fits of laws."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_json, mutate_lines
from fuzz_target import Seed, Target

from cptron.mixture.fit import FitOptions, fit_table
from cptron.mixture.fit_file import read_fit, write_fit
from cptron.mixture.read_points import read_points
from cptron.train.mix_journal import MIX_JOURNAL, Decision, read_decisions


def make_decisions(root: Path) -> list[Seed]:
    """One that was followed, and one whose answer was not taken."""
    decisions = [
        Decision(4, 3, {"a": 0.25, "b": 0.75}, "d"),
        Decision(8, 7, {"a": 0.5, "b": 0.5}, "d", "asked for nan"),
    ]
    (root / MIX_JOURNAL).write_bytes(b"".join(decision.to_line() for decision in decisions))
    return [Seed(root, MIX_JOURNAL)]


def read_mix_journal(directory: Path) -> list[str]:
    """Every decision as a line."""
    return [decision.to_line().decode() for decision in read_decisions(directory / MIX_JOURNAL)]


def check_decisions(directory: Path, value: Any) -> str | None:
    """What was read is written the same again."""
    lines = (directory / MIX_JOURNAL).read_bytes().split(b"\n")[:-1]
    pairs = zip([json.loads(line) for line in value], [json.loads(line) for line in lines], strict=True)
    return None if all(found | line == found for found, line in pairs) else "other decisions than json reads"


def _rows() -> list[dict[str, float]]:
    """Measured runs of one length."""
    return [
        {"share/old": share, "share/new": 1 - share, "tokens": 100.0, "loss/old": 3 - share**2}
        for share in (number / 16 for number in range(12))
    ]


def make_table(root: Path) -> list[Seed]:
    """The same runs as CSV and as JSONL."""
    rows = _rows()
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (root / "runs.csv").write_text("\n".join(lines) + "\n")
    (root / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [Seed(root, "runs.csv"), Seed(root, "runs.jsonl")]


def read_tables(directory: Path) -> str:
    """Points and baselines of both files, as text: what was not recorded is NaN, which equals nothing."""
    return repr([read_points(directory / name) for name in ("runs.csv", "runs.jsonl")])


def make_fit(root: Path) -> list[Seed]:
    """The ridge regression of those runs."""
    make_table(root)
    options = FitOptions(law="regmix", losses={"old": ()}, old="old", new=None, draws=2, seed=1)
    write_fit(root / "fit.json", fit_table(read_points(root / "runs.csv"), options))
    return [Seed(root, "fit.json")]


def read_law(directory: Path) -> Any:
    """The fit, and what its laws say of a mixture of equal shares."""
    fit = read_fit(directory / "fit.json")
    return asdict(fit), [len(one.law(fit.domains).parameters) for one in fit.fits]


TARGETS = [
    Target(
        format="mixer's journal",
        name="mix-journal",
        reader="cptron.train.mix_journal.read_decisions",
        make=make_decisions,
        read=read_mix_journal,
        mutate=mutate_lines,
        check=check_decisions,
    ),
    Target(
        format="measured runs",
        name="mixture-table",
        reader="cptron.mixture.read_points.read_points",
        make=make_table,
        read=read_tables,
        mutate=mutate_bytes,
    ),
    Target(
        format="mixture law",
        name="mixture-fit",
        reader="cptron.mixture.fit_file.read_fit",
        make=make_fit,
        read=read_law,
        mutate=mutate_json,
    ),
]
