"""Targets: what the forgetting monitor keeps, its journal and losses by window, and why a checkpoint was chosen."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_json, mutate_lines
from fuzz_target import Seed, Target

from cptron.data.windows import SetFacts
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.compare import Resampling, set_record, suite_changes
from cptron.forgetting.evaluation import EvaluatedSet, Evaluation, read_evaluation
from cptron.forgetting.journal import Verdict, read_verdicts
from cptron.forgetting.reaction import Reaction
from cptron.forgetting.watch import Seen, Watch
from cptron.report.forgetting import verdict_rows
from cptron.selection.record import SELECTION, read_selection


def make_verdicts(root: Path) -> list[Seed]:
    """An evaluation in the grace window, and a rollback."""
    watch = Watch(seen={"a": Seen(2.0, 1)}, lines=1)
    quiet = Verdict(0, 0, 0, "grace", "none", "", None, None, (), 0, watch, Reaction())
    change = Interval(0.5, float("-inf"), float("inf"))
    rolled = Verdict(
        0, 8, 99, "alarm", "rollback", "why", change, change, ("overfitting",), 4, watch, Reaction(attempt=1)
    )  # fmt: skip
    (root / "forgetting.jsonl").write_bytes(quiet.to_line() + rolled.to_line())
    return [Seed(root, "forgetting.jsonl")]


def check_verdicts(directory: Path, value: Any) -> str | None:
    """What was read is written the same again."""
    lines = (directory / "forgetting.jsonl").read_bytes().split(b"\n")[:-1]
    same = all(json.loads(line) == json.loads(found) for line, found in zip(lines, value[0], strict=True))
    return None if same else "other verdicts than json reads"


def read_journal(directory: Path) -> Any:
    """Verdicts, also as the report shows them."""
    verdicts = read_verdicts(directory / "forgetting.jsonl")
    return [verdict.to_line() for verdict in verdicts], verdict_rows(verdicts)


def make_losses(root: Path) -> list[Seed]:
    """Text with bytes, and a probe."""
    tokens_W = np.arange(1, 7)
    sets = {
        "a": EvaluatedSet("old", SetFacts("w", "t", "tok", (0,)), tokens_W * 2.0, tokens_W, 3 * tokens_W),
        "p": EvaluatedSet("probe", SetFacts("x"), tokens_W * 1.5, tokens_W, None, "induction"),
    }
    (root / "a.losses").write_bytes(Evaluation(4, 99, sets, 1).to_bytes())
    return [Seed(root, "a.losses")]


def mutate_losses(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Any bytes, or the first line alone, whose numbers no hash protects."""
    if draw.random() < 0.4:
        return mutate_bytes(draw, content, others)
    line, end, body = content.partition(b"\n")
    return (
        mutate_json(draw, line, [other.partition(b"\n")[0] for other in others]).replace(b"\n", b" ")
        + end
        + body
    )


def read_losses(directory: Path) -> Any:
    """All of it, and what it is compared with itself."""
    found = read_evaluation(directory / "a.losses")
    how = Resampling(1, 0.95, 100)
    return found.to_bytes(), repr(suite_changes(found, found, how)), repr(set_record(found, found, how))


def make_selection(root: Path) -> list[Seed]:
    """A choice by epsilon among two, and interpolations of one; numbers that JSON has not."""
    numbers: list[float | str] = [0.5, "-inf", "inf"]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "tokens_total": 64,
            "old_change_nats": [0.1, 0.0, 0.2],
            "new_change_nats": numbers,
            "is_pareto": True,
            "is_chosen": name == "a",
            "is_within_epsilon": True,
            "new_minus_chosen_nats": None,
        }
        for name in ("a", "b")
    ]
    grid = {"reason": "why", "candidates": [{**row, "score": 0.5} for row in rows]}
    record = {"format_version": 1, "time": "2026", "reason": "why", "candidates": rows, "grid": grid}
    (root / SELECTION).write_text(json.dumps(record))
    return [Seed(root, SELECTION)]


def read_choice(directory: Path) -> Any:
    """As the report shows it."""
    return json.dumps(read_selection(directory))


TARGETS = [
    Target(
        format="monitor's journal",
        name="forgetting-journal",
        reader="cptron.forgetting.journal.read_verdicts",
        make=make_verdicts,
        read=read_journal,
        mutate=mutate_lines,
        check=check_verdicts,
    ),
    Target(
        format="losses by window",
        name="losses",
        reader="cptron.forgetting.evaluation.read_evaluation",
        make=make_losses,
        read=read_losses,
        mutate=mutate_losses,
    ),
    Target(
        format="choice of a checkpoint",
        name="selection",
        reader="cptron.selection.record.read_selection",
        make=make_selection,
        read=read_choice,
        mutate=mutate_json,
    ),
]
