"""Measured runs from a CSV or JSONL file.

Place in the flow: `cptron mixlaw fit FILE`. Columns, or keys of each JSON line: `share/DOMAIN` (of the training tokens,
all domains together 1), `tokens`, `loss/NAME`, and where they are known `params`, `learnability` and `run`. A row with
tokens 0 is the model before training: a baseline. Invariant: a file that cannot be understood whole is refused, with
the line at fault.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.mixture.points import Baseline, Point, Table

SHARE, LOSS = "share/", "loss/"
PLAIN = ("tokens", "params", "learnability", "run")
SUM_TOLERANCE = 5e-3
"""How far from 1 the sum of the shares of a row may be, which are often rounded; they are divided by their sum."""
LARGEST = 1e30

Row = tuple[str, Mapping[str, Any]]
"""Where it stands, and its values by column."""


def read_points(path: Path) -> Table:
    """All rows of `path`. Raises `DataError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a CSV or JSONL file in UTF-8") from None
    rows = list(_json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text))
    if not rows:
        raise DataError(
            f"{path} has no rows, must have measured runs; see docs/mixture_laws.md for its columns"
        )
    names = {name: None for _, row in rows for name in row}
    for name in names:
        if name not in PLAIN and not (name.startswith((SHARE, LOSS)) and name.partition("/")[2]):
            raise DataError(
                f"{path} has the column {name!r}, must be one of share/DOMAIN, loss/NAME, {', '.join(PLAIN)}; "
                "rename or remove it"
            )
    domains = tuple(name.removeprefix(SHARE) for name in names if name.startswith(SHARE))
    for kind, found in (("share/DOMAIN", domains), ("loss/NAME", [n for n in names if n.startswith(LOSS)])):
        if not found:
            raise DataError(f"{path} has no column {kind}, must have one at least; add it")
    return _table(rows, domains)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise DataError(f"{path}:{number} must be a JSON object ({error}); correct the line") from None
        yield f"{path}:{number}", row


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    lines = csv.reader(text.splitlines(), strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        if len(set(names)) != len(names):
            raise DataError(f"{path} names a column twice in {names!r:.200}, must name each once; correct it")
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}:{lines.line_num} has {len(cells)} cells, must have {len(names)} as the first line has; "
                    "correct it"
                )
            filled = {n: cell.strip() for n, cell in zip(names, cells, strict=True) if cell.strip()}
            yield f"{path}:{lines.line_num}", filled
    except csv.Error as error:
        raise DataError(f"{path}:{lines.line_num} must be CSV ({error}); correct the line") from None


def _table(rows: list[Row], domains: tuple[str, ...]) -> Table:
    points, baselines = [], []
    for where, row in rows:
        losses = {name.removeprefix(LOSS): _number(where, row, name) for name in row if name.startswith(LOSS)}
        if not losses:
            raise DataError(f"{where} has no loss, must have one at least; add it or remove the row")
        tokens = _number(where, row, "tokens", least=0.0)
        params = _optional(where, row, "params")
        if tokens == 0:
            baselines.append(Baseline(params, losses))
            continue
        shares = _shares(where, row, domains)
        run = str(row.get("run", where))
        points.append(Point(shares, losses, tokens, params, _optional(where, row, "learnability"), run))
    return Table(domains, tuple(points), tuple(baselines))


def _shares(where: str, row: Mapping[str, Any], domains: tuple[str, ...]) -> tuple[float, ...]:
    found = [_number(where, row, SHARE + name, least=0.0) for name in domains]
    total = math.fsum(found)
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(
            f"{where} has shares that sum to {total:g}, and must sum to 1 over {', '.join(domains)}; give fractions "
            "of the training tokens"
        )
    return tuple(share / total for share in found)


def _optional(where: str, row: Mapping[str, Any], name: str) -> float:
    return _number(where, row, name, least=1e-30) if name in row else float("nan")


def _number(where: str, row: Mapping[str, Any], name: str, least: float = -LARGEST) -> float:
    """A finite number from `least`."""
    value = row.get(name)
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        number = float("nan")
    if not least <= number <= LARGEST:
        shown = "no value" if value is None else f"{value!r:.80}"
        rule = "a number" if least < 0 else "a number from 0" if least == 0 else "a number above 0"
        raise DataError(f"{where} has {shown} for {name}, must be {rule}; correct it")
    return number
