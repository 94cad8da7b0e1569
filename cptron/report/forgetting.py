"""The part of a report about forgetting: how old and new data have changed, how sure that is, and what was done.

Place in the flow: `view` -> here -> `figure`; from the evaluations of the metrics and from the monitor's journal, which
also has what a rollback has left behind. Invariant: nothing is drawn for a run without suites and probes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from cptron.config.schema import Config
from cptron.forgetting.journal import Verdict
from cptron.forgetting.settings import rules_of
from cptron.report.console import FINDINGS, compact
from cptron.report.spec import Chart, Line, Values
from cptron.report.view import View

OLD_COLOR, NEW_COLOR, CONTROL_COLOR = 2, 3, 1
_UNIT = "nats per token against the base; shaded: interval"


def forgetting_charts(view: View) -> list[Chart]:
    """Change of the suites with their intervals and epsilon; and what the probes show."""
    epsilon = view.log.config.forgetting.epsilon_nats
    charts = []
    for title, key, color, levels in (
        ("Old data: forgetting", "forgetting/old", OLD_COLOR, [(epsilon, f"epsilon {epsilon:g}")]),
        ("New data: learning", "learning/new", NEW_COLOR, []),
    ):
        lines = [view.interval("against the base", f"{key}/change", color)]
        if key == "forgetting/old" and _has_points(lines[0]):
            lines += _left_behind(view)
        lines.append(view.evaluated("against the control run", f"{key}/control_change_nats", CONTROL_COLOR))
        charts.append(
            Chart(title=title, unit=_UNIT, lines=list(filter(_has_points, lines)), zero=True, levels=levels)
        )
    names = [key.split("/")[1] for key in view.evals.names if key.endswith("/score_nats")]
    probes = [
        view.evaluated(name, f"probe/{name}/score_nats", color) for color, name in enumerate(names, start=1)
    ]
    unit = "nats per token that the context tells, minus others; a rise is a loss of the ability"
    charts.append(Chart(title="Probes of what the context is used for", unit=unit, lines=probes, zero=True))
    return [chart for chart in charts if not chart.is_empty]


def verdict_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Step, tokens, pass, change of old data, and what was found and done; of evaluations at which there was
    something."""
    rows = []
    for verdict in verdicts:
        if (
            verdict.finding in ("above", "alarm", "hold", "clear")
            or verdict.alarms
            or verdict.action != "none"
        ):
            old = verdict.old
            change = f"{old.estimate:+.4f} [{old.low:+.4f}, {old.high:+.4f}]" if old else "-"
            found = "; ".join([action_text(verdict), *verdict.alarms])
            cells = (
                str(verdict.step),
                compact(verdict.tokens_total),
                str(verdict.attempt + 1),
                change,
                found,
            )
            rows.append([escape(cell) for cell in cells])
    return rows


VERDICT_HEAD = ["step", "tokens", "pass", "change of old data", "what"]
"""Above `verdict_rows`."""


def note(config: Config, verdicts: Sequence[Verdict]) -> str:
    """What the charts are to be read by."""
    begun_step = verdicts[-1].watch.begun_step if verdicts else 0
    rules, asked = rules_of(config, begun_step), config.forgetting
    return (
        f"An alarm is {rules.patience} evaluation(s) in a row whose whole {asked.confidence:.0%} interval is beyond "
        f"{rules.epsilon_nats:g} nats per token, after {compact(rules.grace_tokens)} tokens of grace; it is over below "
        f"half of that. Action: {asked.action.replace('_', ' ')}."
    )


def action_text(verdict: Verdict) -> str:
    """A verdict in words."""
    text = FINDINGS[verdict.finding]
    if verdict.action == "none":
        return text
    return f"{text}: {verdict.action.replace('_', ' ')}{f' ({verdict.why})' if verdict.why else ''}"


def _has_points(line: Line) -> bool:
    return any(value is not None for value in line.values.y)


def _left_behind(view: View) -> list[Line]:
    """The change of old data in passes that a rollback has ended, faintly."""
    verdicts = view.log.verdicts
    lines = []
    for attempt in range(max((verdict.attempt for verdict in verdicts), default=0)):
        of_pass = [v for v in verdicts if v.attempt == attempt and v.old and math.isfinite(v.old.estimate)]
        values = Values([v.old.estimate for v in of_pass if v.old])
        grid = view.places.grid([v.step for v in of_pass])
        label = f"pass {attempt + 1}, rolled back"
        lines.append(Line(label=label, grid=grid, values=values, color=OLD_COLOR, faint=True, dots=True))
    return lines
