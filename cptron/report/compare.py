"""Several runs beside each other: the same metric of all in one chart, what their configurations differ in, what they
came to, and what each had come to at the same number of tokens.

Place in the flow: `run_log` -> here -> `page`. Invariant: numbers called "at the same tokens" are of evaluations at or
before the tokens that every run has reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cptron.config.load import config_to_dict
from cptron.plan.gpus import Gpu
from cptron.report.charts import SHOWN_SOURCES
from cptron.report.console import compact
from cptron.report.figure import Figures
from cptron.report.happened import events_of
from cptron.report.page import live_page
from cptron.report.run_log import RunLog
from cptron.report.spec import Chart, Line
from cptron.report.tables import section, table
from cptron.report.view import View

STEP_CHARTS = (
    ("Training loss", "nats per token", "loss_nats_per_token", False),
    ("Learning rate", "", "lr", True),
    ("Gradient norm", "global L2, before clipping", "grad_norm", True),
    ("Step time", "seconds", "step_time_s", True),
)
SUITES = (("Old data: forgetting", "forgetting/old/change"), ("New data: learning", "learning/new/change"))
MOST_SETS = 60
"""Validation sets with a chart of their own."""


def comparison(logs: Sequence[RunLog], gpu: Gpu | None) -> str:
    """The page."""
    names = distinct_names(logs)
    views = [View(log, index, len(logs), gpu) for index, log in enumerate(logs)]
    events = [event for view in views for event in events_of(view)]
    figures = Figures(events, names)

    def drawn(title: str, charts: Sequence[Chart], note: str = "") -> str:
        shown = "".join(figures.add(chart) for chart in charts)
        return section(title, f'{note}<div class="charts">{shown}</div>') if shown else ""

    title = f"{len(names)} runs"
    body = [
        f"<header><h1>{escape(title)}</h1><p>{_key(names)}</p></header>",
        _results(names, views),
        drawn("Validation", _set_charts(names, views)),
        drawn("Forgetting and learning", _suite_charts(names, views)),
        drawn("Training", [*_step_charts(names, views), _speed_chart(names, views)]),
        drawn("Loss by source", _source_charts(names, views)),
        _differences(names, logs),
    ]
    return live_page(f"Comparison: {', '.join(names)}", "\n".join(filter(None, body)), figures.data())


def distinct_names(logs: Sequence[RunLog]) -> list[str]:
    """Names of the runs; with the directory where two are the same."""
    names = [log.name for log in logs]
    return [
        name if names.count(name) == 1 else f"{name} ({log.directory})"
        for name, log in zip(names, logs, strict=True)
    ]


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Keys whose values are not the same in all, with the values; None where a configuration has no such key. Of a
    source or set that is not in all there is one row for that, and others only where those that have it differ."""
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for found in flat for key in found)
    rows = [(key, [found.get(key) for found in flat]) for key in keys]
    items = {key for found in flat for key, value in found.items() if value == "there"}
    return [
        (key, values)
        for key, values in rows
        if _differ(values if key in items else [value for value in values if value is not None])
    ]


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values[1:])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """`data.sources.web.token_share`; items of a list by their names, else by their places, and `there` for each."""
    found: dict[str, Any] = {}
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        items = [(str(item.get("name", place)), item) for place, item in enumerate(value)]
        found = {f"{prefix}.{key}": "there" for key, _ in items}
    else:
        return {prefix: value}
    for key, item in items:
        found |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return found


def _key(names: Sequence[str]) -> str:
    """Every run with its colour."""
    return "".join(
        f'<span class="run"><i class="k s{1 + place % 7}"></i>{escape(name)}</span>'
        for place, name in enumerate(names)
    )


def same_tokens(views: Sequence[View]) -> float:
    """Tokens that every run has reached."""
    return min(reached(view) for view in views)


def reached(view: View) -> float:
    """Tokens that a run was trained on, by its steps and evaluations."""
    known = [view.steps.last("tokens_total"), view.evals.last("tokens_total")]
    return max((tokens for tokens in known if math.isfinite(tokens)), default=0.0)


def loss_at(view: View, name: str, tokens: float) -> tuple[float, float]:
    """Loss of a set at its last evaluation at or before `tokens`, and the tokens of that; NaN without one."""
    losses, places = view.evals.column(f"valid/{name}/loss_nats_per_token"), view.evals.column("tokens_total")
    there = [
        place for place in range(len(losses)) if math.isfinite(losses[place]) and places[place] <= tokens
    ]
    return (float(losses[there[-1]]), float(places[there[-1]])) if there else (math.nan, math.nan)


def _results(names: Sequence[str], views: Sequence[View]) -> str:
    together = same_tokens(views)
    sets = list(dict.fromkeys(name for view in views for name in view.valid_sets))
    rows = [
        ["tokens trained on", *(compact(reached(view)) for view in views)],
        ["steps", *(f"{view.log.last_step:,}" for view in views)],
        ["training loss, last 5 %", *(_tail_loss(view) for view in views)],
        ["tokens/s, median", *(_median(view, "tokens_per_s") for view in views)],
    ]
    for name in sets:
        rows.append(
            [f"{escape(name)}: loss at the end", *(_loss_cell(view, name, math.inf) for view in views)]
        )
    for name in sets:
        label = f"{escape(name)}: loss at {compact(together)} tokens"
        rows.append([label, *(_loss_cell(view, name, together) for view in views)])
    note = (
        f"Losses in nats per token, in parentheses the change since the run's first evaluation. All runs have reached "
        f"{compact(together)} tokens; values there are those of the last evaluation before it."
    )
    return section("What they came to", f"<p>{note}</p>{table(['', *names], rows, numbers=True)}")


def _loss_cell(view: View, name: str, tokens: float) -> str:
    loss, _ = loss_at(view, name, tokens)
    if not math.isfinite(loss):
        return "-"
    change = loss - float(view.evals.finite(f"valid/{name}/loss_nats_per_token")[0])
    return f'{loss:.4f} <span class="{"up" if change > 0 else "down"}">({change:+.4f})</span>'


def _tail_loss(view: View) -> str:
    losses = view.steps.finite("loss_nats_per_token")
    return f"{losses[-max(1, len(losses) // 20) :].mean():.4f}" if len(losses) else "-"


def _median(view: View, name: str) -> str:
    values = sorted(view.steps.finite(name).tolist())
    return compact(values[len(values) // 2]) if values else "-"


def _lines(names: Sequence[str], views: Sequence[View], line_of: Any) -> list[Line]:
    return [
        line_of(view, name, 1 + place % 7)
        for place, (name, view) in enumerate(zip(names, views, strict=True))
    ]


def _chart(title: str, unit: str, lines: Sequence[Line], zero: bool = False, smooth: bool = False) -> Chart:
    with_points = [line for line in lines if any(value is not None for value in line.values.y)]
    return Chart(title=title, unit=unit, lines=with_points, zero=zero, smooth=smooth, per_run=True)


def _step_charts(names: Sequence[str], views: Sequence[View]) -> list[Chart]:
    charts = []
    for title, unit, key, zero in STEP_CHARTS:
        lines = _lines(names, views, lambda view, name, color, key=key: view.means(name, key, color))
        charts.append(_chart(title, unit, lines, zero, smooth=key != "lr"))
    return charts


def _speed_chart(names: Sequence[str], views: Sequence[View]) -> Chart:
    lines = _lines(
        names, views, lambda view, name, color: view.derived(name, view.tokens_per_s_per_rank(), color)
    )
    return _chart("Throughput", "tokens/s per rank", lines, zero=True, smooth=True)


def _set_charts(names: Sequence[str], views: Sequence[View]) -> list[Chart]:
    sets = list(dict.fromkeys(name for view in views for name in view.valid_sets))
    return [
        _chart(
            f"Validation loss: {each}",
            "nats per token",
            _lines(
                names,
                views,
                lambda view, name, color, each=each: view.evaluated(
                    name, f"valid/{each}/loss_nats_per_token", color
                ),
            ),
        )
        for each in sets[:MOST_SETS]
    ]


def _suite_charts(names: Sequence[str], views: Sequence[View]) -> list[Chart]:
    return [
        _chart(
            title,
            "nats per token against the base; shaded: interval",
            _lines(names, views, lambda view, name, color, prefix=prefix: view.interval(name, prefix, color)),
            zero=True,
        )
        for title, prefix in SUITES
    ]


def _source_charts(names: Sequence[str], views: Sequence[View]) -> list[Chart]:
    """Of the sources of which most was drawn in any run."""
    sources = dict.fromkeys(name for view in views for name in view.largest_sources(SHOWN_SOURCES))
    return [
        _chart(
            f"Training loss: {each}",
            "nats per token",
            _lines(
                names,
                views,
                lambda view, name, color, each=each: view.means(name, f"loss_nats_per_token/{each}", color),
            ),
            smooth=True,
        )
        for each in list(sources)[:SHOWN_SOURCES]
    ]


def _differences(names: Sequence[str], logs: Sequence[RunLog]) -> str:
    found = config_differences([config_to_dict(log.config) for log in logs])
    rows = [
        [escape(key), *(escape("-" if value is None else str(value)) for value in values)]
        for key, values in found
    ]
    body = table(["key", *names], rows) if rows else "<p>Nothing.</p>"
    return section("What their configurations differ in", body)
