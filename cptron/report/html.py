"""`report.html`: one run, or several beside each other, as one file that can be mailed or opened from a cluster's disk.

Place in the flow: written when a run stops, by `cptron select`, and by `cptron report` for any run directory.
Invariant: a pure function of the files in the run directories; the page loads nothing, and runs no script but its own
(`page`).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.plan.gpus import Gpu
from cptron.report import charts
from cptron.report.compare import comparison
from cptron.report.figure import Figures
from cptron.report.forgetting import VERDICT_HEAD, forgetting_charts, verdict_rows
from cptron.report.forgetting import note as forgetting_note
from cptron.report.happened import events_of
from cptron.report.page import live_page
from cptron.report.run_log import RunLog, read_run
from cptron.report.spec import Chart
from cptron.report.tables import (
    cards,
    checkpoint_table,
    details,
    event_table,
    guard_table,
    section,
    selection_part,
    source_table,
    table,
    validation_table,
)
from cptron.report.view import View

REPORT_FILE = "report.html"


def write_report(run_dir: Path, output: Path | None = None, gpu: Gpu | None = None) -> Path:
    """Write `run_dir/report.html`, or `output`, from metrics.jsonl, config.yaml and, where present, summary.json,
    forgetting.jsonl, selection.json and the checkpoints; returns its path.

    Raises `DataError` when there are no metrics, or the page cannot be written, and `ConfigError` when the
    configuration cannot be read.
    """
    return _write([run_dir], output or run_dir / REPORT_FILE, gpu)


def write_comparison(run_dirs: Sequence[Path], output: Path, gpu: Gpu | None = None) -> Path:
    """Write a page with several runs beside each other. Raises as `write_report`."""
    return _write(run_dirs, output, gpu)


def _write(run_dirs: Sequence[Path], output: Path, gpu: Gpu | None) -> Path:
    logs = [read_run(directory) for directory in run_dirs]
    try:
        text = _one(logs[0], gpu) if len(logs) == 1 else comparison(logs, gpu)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        names = ", ".join(str(directory) for directory in run_dirs)
        raise DataError(
            f"{names}: the metrics have records that the trainer does not write ({error!r:.200}); restore the file"
        ) from error
    try:
        replace_text(output, text)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error}); choose another --output") from None
    return output


def _one(log: RunLog, gpu: Gpu | None) -> str:
    """The page of one run."""
    view = View(log, gpu=gpu)
    events = events_of(view)
    figures = Figures(events, [log.name])

    def drawn(made: Sequence[Chart]) -> str:
        shown = "".join(figures.add(chart) for chart in made)
        return f'<div class="charts">{shown}</div>' if shown else ""

    def titled(title: str, made: Sequence[Chart], more: str = "") -> str:
        shown = drawn(made) + more
        return section(title, shown) if shown else ""

    body = [
        f"<header><h1>{escape(log.name)}</h1><p>{escape(status(log))}</p></header>",
        cards(view),
        validation_table(view),
        titled("Validation", charts.validation_charts(view)),
        _forgetting(view, drawn(forgetting_charts(view))),
        selection_part(view),
        titled("Loss", charts.loss_charts(view)),
        titled("Optimizer", charts.optimizer_charts(view)),
        guard_table(view),
        titled("What it was trained on", charts.data_charts(view), source_table(view)),
        titled("Speed", charts.speed_charts(view)),
        titled("Other measures", charts.other_charts(view)),
        event_table(events),
        checkpoint_table(view),
        details(view),
    ]
    return live_page(log.name, "\n".join(part for part in body if part), figures.data())


def status(log: RunLog) -> str:
    """How far the run is, and how it ended."""
    if not (len(log.steps) or log.evals or log.events):
        return "no records yet"
    # an evaluation, a save or a start after the stop means that it goes on
    stops = log.of_kind("stop")
    ended = stops and stops[-1] is log.events[-1] and log.last_step <= stops[-1]["step"]
    ending = str(stops[-1]["reason"]) if ended else "running, or ended without a stop record"
    if log.last_step == log.config.train.steps:
        return ending
    return f"{ending} (step {log.last_step} of {log.config.train.steps})"


def _forgetting(view: View, shown: str) -> str:
    if not shown:
        return ""
    rows = verdict_rows(view.log.verdicts)
    below = table(VERDICT_HEAD, rows) if rows else "<p>Nothing was beyond it.</p>"
    return section(
        "Forgetting", f"<p>{escape(forgetting_note(view.log.config, view.log.verdicts))}</p>{shown}{below}"
    )
