"""What people see of forgetting: charts with intervals and actions, console lines, `cptron inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cptron.config.load import load_config, resolved_yaml
from cptron.config.schema import Config
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.journal import Action, Finding, Verdict, append_verdict
from cptron.forgetting.reaction import Reaction
from cptron.forgetting.watch import Watch
from cptron.inspect_run import describe_run
from cptron.report.console import forgetting_lines
from cptron.report.forgetting import forgetting_charts, verdict_rows
from cptron.report.happened import events_of
from cptron.report.html import write_report
from cptron.report.run_log import RunLog
from cptron.report.steplog import StepLog
from cptron.report.view import View

CONFIG = """\
run: {dir: RUN}
start: {checkpoint: b}
data: {seq_length: 8, sources: [{name: a, path: p, token_share: 1}], valid: [{name: a, path: v, suite: old}]}
train: {steps: 8, global_batch_size: 1}
optim: {lr: 1e-3}
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of one old set."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    return load_config(tmp_path / "config.yaml").config


def record(step: int, change: float, half: float = 0.01, **more: Any) -> dict[str, Any]:
    """Of an evaluation, as metrics.jsonl has it."""
    return {
        "kind": "eval", "step": step, "tokens_total": 1000 * step,
        "valid/a/loss_nats_per_token": 2 + change, "valid/a/perplexity": 9.0, "valid/a/tokens": 80,
        "forgetting/old/change_nats": change, "forgetting/old/change_low": change - half,
        "forgetting/old/change_high": change + half, "probe/induction/score_nats": -2.0 + change,
        "probe/induction/change_nats": change, "forgetting/finding": "quiet", **more,
    }  # fmt: skip


def verdict(step: int, attempt: int, finding: Finding, action: Action = "none") -> Verdict:
    """A line of the journal."""
    change = Interval(0.07, 0.06, 0.08)
    why = "back to step 1, replay times 2" if action == "rollback" else ""
    return Verdict(
        attempt, step, 1000 * step, finding, action, why, change, None, (), 1, Watch(), Reaction(attempt=attempt)
    )  # fmt: skip


EVALS = [record(0, 0.0, 0.0), record(1, 0.02), record(2, 0.07, 0.02), record(3, 0.03)]
VERDICTS = [
    verdict(1, 0, "quiet"),
    verdict(2, 0, "above"),
    verdict(3, 0, "alarm", "rollback"),
    verdict(2, 1, "quiet"),
]


def view_of(config: Config, evals: list[dict[str, Any]], verdicts: list[Verdict]) -> View:
    """As a report sees the run."""
    log = RunLog(
        name="n", directory=Path("n"), config=config, steps=StepLog(), evals=evals, events=[], replayed=[],
        verdicts=verdicts,
    )  # fmt: skip
    return View(log)


def test_charts_show_intervals_epsilon_and_actions(config: Config) -> None:
    """Both ends of every evaluation; what a rollback has left is there, faintly; the action is an event."""
    view = view_of(config, EVALS, VERDICTS)
    old, probes = forgetting_charts(view)
    line, left = old.lines
    assert (list(line.values.y), line.interval) == ([0, 0.02, 0.07, 0.03], True)
    assert list(line.values.low or ()) == pytest.approx([0, 0.01, 0.05, 0.02])
    assert list(line.values.high or ()) == pytest.approx([0, 0.03, 0.09, 0.04])
    assert old.levels == [(0.05, "epsilon 0.05")]
    assert (left.faint, list(left.grid.step), list(left.values.y)) == (True, [1, 2, 3], [0.07] * 3)
    assert [each.label for each in probes.lines] == ["induction"]
    policy = [event for event in events_of(view) if event.kind == "policy"]
    assert [(event.step, event.tokens) for event in policy] == [(3, 3000)]
    assert policy[0].text.startswith("ALARM, beyond epsilon: rollback (back to step 1")
    assert [row[:3] for row in verdict_rows(VERDICTS)] == [["2", "2.00k", "1"], ["3", "3.00k", "1"]]


def test_a_control_run_is_a_line_of_its_own(config: Config) -> None:
    keys = {f"forgetting/old/control_change_{end}": 0.01 for end in ("nats", "low", "high")}
    old, _ = forgetting_charts(view_of(config, [*EVALS, record(4, 0.03, **keys)], []))
    assert [line.label for line in old.lines] == ["against the base", "against the control run"]


def test_ends_that_are_no_numbers_are_left_out(config: Config) -> None:
    """A set of one window has an infinite interval, which JSON stores as text."""
    unsure = [record(step, 0.01) | {"forgetting/old/change_low": "-inf"} for step in (0, 1)]
    old, _ = forgetting_charts(view_of(config, unsure, []))
    assert list(old.lines[0].values.low or ()) == [None, None] and list(old.lines[0].values.y) == [0.01, 0.01]
    plain = [
        {key: value for key, value in found.items() if "/a/" in key or "/" not in key} for found in EVALS
    ]
    assert forgetting_charts(view_of(config, plain, [])) == []


def test_the_page_and_inspect_read_the_files_of_a_run(config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(found) + "\n" for found in EVALS))
    (tmp_path / "run.json").write_text('{"name": "n", "identity": {}}')
    assert "<h2>Forgetting</h2>" in write_report(tmp_path).read_text()
    assert "forgetting" not in describe_run(tmp_path)
    for found in VERDICTS:
        append_verdict(tmp_path / "forgetting.jsonl", found)
    assert "back to step 1, replay times 2" in write_report(tmp_path).read_text()
    rows = describe_run(tmp_path)["forgetting"]
    assert [(row["step"], row["pass"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (2, 2)]
    assert rows[2]["old_change_nats"] == "+0.0700 [+0.0600, +0.0800]"
    (tmp_path / "forgetting.jsonl").write_bytes(b"{}\n")
    assert "cannot be read" in describe_run(tmp_path)["forgetting"]


def test_console_lines() -> None:
    """What changed, what probes show, what was done; nothing without a monitor."""
    alarm = {
        "forgetting/finding": "alarm",
        "forgetting/action": "lower_lr",
        "forgetting/why": "rate times 0.5",
    }
    lines = forgetting_lines(record(2, 0.07, **alarm, **{"forgetting/alarms": ["overfitting: x"]}))
    assert lines == [
        "old data +0.0700 nats/token against the base [+0.0600, +0.0800]",
        "probe induction -1.9300 nats/token (+0.0700 against the base)",
        "forgetting: ALARM, beyond epsilon: lower lr (rate times 0.5)",
        "alarm, overfitting: x",
    ]
    assert forgetting_lines({"kind": "eval", "step": 1, "valid/a/loss_nats_per_token": 2.0}) == []
