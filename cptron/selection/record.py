"""Why a checkpoint was chosen: `RUN/selection.json`, and the same as a table.

Place in the flow: what was surveyed and chosen -> here -> disk, stdout, the run's report. Imports no torch. Invariant:
the file has every candidate with its numbers and every refused one with its reason; it is written in one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cptron.checkpoint.layout import write_json
from cptron.errors import CheckpointError, DataError
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.compare import suite_changes
from cptron.forgetting.evaluation import Evaluation
from cptron.json_text import parse_json
from cptron.report.console import table
from cptron.selection.candidates import Survey, suite_sets
from cptron.selection.rules import Choice, Point, Rule, front, is_within, text
from cptron.versions import installed_versions

SELECTION = "selection.json"
FORMAT_VERSION = 1
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """One row: a model, where it is, and what else is known of it."""

    point: Point
    evaluation: Evaluation
    facts: Record


def rows_of(rule: Rule, choice: Choice, models: Sequence[Shown], found: Survey) -> list[Record]:
    """A record for each model, most learned first."""
    is_front = {point.name for point in front([model.point for model in models])}
    chosen = {point.name for point in choice.chosen}
    only = next((model for model in models if {model.point.name} == chosen), None)
    rows = []
    for model in models:
        point, row = model.point, {"name": model.point.name, **model.facts}
        row |= {"old_change_nats": _numbers(point.old), "new_change_nats": _numbers(point.new)}
        row |= {f"{suite}_loss_nats_per_token": _loss(model.evaluation, suite) for suite in ("old", "new")}
        row |= {"is_pareto": point.name in is_front, "is_chosen": point.name in chosen}
        if rule.mode == "constrained":
            row["is_within_epsilon"] = is_within(point, rule.epsilon_nats)
        if rule.mode == "weighted":
            row["score"] = choice.scores[point.name]
        if only is not None:
            against = suite_changes(model.evaluation, only.evaluation, found.how)
            row["new_minus_chosen_nats"] = _numbers(against.get("new"))
        rows.append((point, row))
    order = sorted(
        rows, key=lambda item: (item[0].values.get("new", 0.0), item[0].old.estimate, item[0].name)
    )
    return [row for _, row in order]


def record_of(
    rule: Rule, choice: Choice, rows: Sequence[Record], found: Survey, command: Sequence[str]
) -> Record:
    """All of `selection.json` but the grid and the marks."""
    rules: Record = {"mode": rule.mode}
    if rule.mode == "constrained":
        rules |= {"epsilon_nats": rule.epsilon_nats}
    if rule.mode == "weighted":
        rules |= {"weights": dict(rule.weights)}
    return {
        "format_version": FORMAT_VERSION,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": installed_versions(),
        "rule": rules,
        "intervals": {
            "confidence": found.how.confidence,
            "resamples": found.how.resamples,
            "seed": found.how.seed,
        },
        "base": {"losses": str(found.base_path), "step": found.base.step},
        "chosen": [point.name for point in choice.chosen],
        "nearest": choice.nearest.name if choice.nearest else None,
        "reason": choice.reason,
        "candidates": list(rows),
        "not_comparable": found.refused,
        "without_checkpoint": found.unsaved,
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The candidates for people; marks in the first column: `>` chosen, `*` no other is better in both."""
    head = ["", "candidate", "tokens", "old: change [interval]", "new: change [interval]"]
    more = [("score", "score")] if "score" in rows[0] else []
    more += [("within", "is_within_epsilon")] if "is_within_epsilon" in rows[0] else []
    more += [("new: minus chosen", "new_minus_chosen_nats")] if "new_minus_chosen_nats" in rows[0] else []
    lines = [
        [
            (">" if row["is_chosen"] else " ") + ("*" if row["is_pareto"] else " "),
            row["name"],
            f"{row['tokens_total']:,}",
            _interval_text(row["old_change_nats"]),
            _interval_text(row["new_change_nats"]),
            *(_cell(row[key]) for _, key in more),
        ]
        for row in rows
    ]
    return table([*head, *(title for title, _ in more)], lines)


def write_selection(run: Path, record: Mapping[str, Any]) -> Path:
    """`RUN/selection.json`, in place of the one before. Raises `CheckpointError`."""
    path = run / SELECTION
    try:
        write_json(path, record)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}); make it writable, or give --dry-run"
        ) from None
    return path


def read_selection(run: Path) -> Record | None:
    """What was chosen last, for people: `reasons`, `tables`, `time` and `chosen_paths`; None where nothing was. Raises
    `DataError` where the file is damaged."""
    path = run / SELECTION
    if not path.exists():
        return None
    try:
        record = parse_json(path.read_text())
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {record['format_version']!r:.40}, must be {FORMAT_VERSION}")
        parts = [record, *([record["grid"]] if record["grid"] is not None else [])]
        reasons = [part["reason"] for part in parts]
        if not all(type(text) is str for text in (*reasons, record["time"])):
            raise ValueError("reason and time must be texts")
        shown_tables = [table_of(part["candidates"]) for part in parts]
        chosen = [str(row["path"]) for row in record["candidates"] if row["is_chosen"] and "path" in row]
        return {
            "reasons": reasons,
            "time": record["time"],
            "tables": shown_tables,
            "chosen_paths": chosen,
        }
    except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is none that cptron select has written ({error!r:.100}); choose again, or remove it"
        ) from None


def _loss(evaluation: Evaluation, suite: str) -> float | None:
    """Mean over the sets of a suite."""
    losses = [found.loss_nats_per_token for found in suite_sets(evaluation).values() if found.suite == suite]
    return math.fsum(losses) / len(losses) if losses else None


def _numbers(interval: Interval | None) -> list[float | str] | None:
    """JSON has no infinities."""
    if interval is None:
        return None
    ends = (interval.estimate, interval.low, interval.high)
    return [value if math.isfinite(value) else str(value) for value in ends]


def _interval_text(numbers: Any) -> str:
    return "-" if numbers is None else text(Interval(*map(float, numbers)))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:+.4f}" if isinstance(value, float) else _interval_text(value)
