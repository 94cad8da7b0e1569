"""The part of a report about forgetting: how old and new data have changed, how sure that is, and what was done.

Place in the flow: between `html` and `svg`; from the evaluations of the metrics and from the monitor's journal, which
also has what a rollback has left behind. Invariant: nothing is drawn for a run without suites and probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cptron.config.schema import Config
from cptron.forgetting.journal import Verdict
from cptron.forgetting.settings import rules_of
from cptron.report.charts import points_of
from cptron.report.console import FINDINGS, compact
from cptron.report.sinks import Record
from cptron.report.svg import Series, line_chart

OLD_COLOR, NEW_COLOR, CONTROL_COLOR = 2, 3, 1
_UNIT = "nats per token against the base; shaded: interval"


def forgetting_charts(config: Config, evals: Sequence[Record], verdicts: Sequence[Verdict]) -> list[str]:
    """Change of the suites with their intervals, epsilon and actions; and what the probes show."""
    marks = [(verdict.tokens_total, action_text(verdict)) for verdict in verdicts if verdict.action != "none"]
    levels = [(config.forgetting.epsilon_nats, f"epsilon {config.forgetting.epsilon_nats:g}")]
    charts = []
    for title, key, color, level in (
        ("Old data: forgetting", "forgetting/old", OLD_COLOR, levels),
        ("New data: learning", "learning/new", NEW_COLOR, []),
    ):
        lines = [_with_band("against the base", evals, f"{key}/change", color)]
        if control := points_of(evals, "tokens_total", f"{key}/control_change_nats"):
            lines.append(Series("against the control run", control, CONTROL_COLOR))
        if lines[0].points and key == "forgetting/old":
            lines += _left_behind(verdicts)
        charts.append(
            line_chart(title, "tokens trained on", _UNIT, lines, zero=True, marks=marks, levels=level)
        )
    names = [key.split("/")[1] for key in (evals[-1] if evals else {}) if key.endswith("/score_nats")]
    probes = [
        Series(name, points_of(evals, "tokens_total", f"probe/{name}/score_nats"), color)
        for color, name in enumerate(names, start=1)
    ]
    unit = "nats per token that the context tells, minus others; a rise is a loss of the ability"
    charts.append(
        line_chart("Probes of what the context is used for", "tokens trained on", unit, probes, zero=True)
    )
    return [chart for chart in charts if chart]


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


def note(config: Config) -> str:
    """What the charts are to be read by."""
    rules, asked = rules_of(config), config.forgetting
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


def _with_band(label: str, evals: Sequence[Record], prefix: str, color: int) -> Series:
    # ends that are not finite are stored as text
    high_at = dict(points_of(evals, "tokens_total", f"{prefix}_high"))
    lows = points_of(evals, "tokens_total", f"{prefix}_low")
    band = [(x, low, high_at[x]) for x, low in lows if x in high_at]
    return Series(label, points_of(evals, "tokens_total", f"{prefix}_nats"), color, band=band)


def _left_behind(verdicts: Sequence[Verdict]) -> list[Series]:
    """The change of old data in passes that a rollback has ended, faintly."""
    last = max((verdict.attempt for verdict in verdicts), default=0)
    return [
        Series(
            "",
            [(v.tokens_total, v.old.estimate) for v in verdicts if v.attempt == attempt and v.old],
            OLD_COLOR,
            faint=True,
        )
        for attempt in range(last)
    ]
