"""A chart as HTML: a still picture, which the script of the page replaces, and the numbers that the script draws.

Place in the flow: between the makers of charts and `page`. Without a script, as in a mail reader, the picture stays.
Invariant: the text of the numbers holds no `<`, so that no name in them can end the block or begin another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cptron.report.spec import KINDS, Chart, Event, Grid, Line
from cptron.report.svg import Series, line_chart, smoothed

SMOOTH_FROM = 60
"""Points from which a noisy curve is drawn smoothed over its raw values."""
STILL_POINTS = 6000
"""Points of one still picture."""
STILL_MARKS = ("fault", "policy")
"""Kinds of events that a still picture shows."""


class Figures:
    """All charts of a page."""

    def __init__(self, events: Sequence[Event], runs: Sequence[str]) -> None:
        self._events, self._runs = events, runs
        self._grids: dict[int, int] = {}
        self._grid_values: list[dict[str, Any]] = []
        self._kept: list[Grid] = []
        self._charts: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._charts)

    def add(self, chart: Chart) -> str:
        """The figure; its numbers go into `data`. Empty for a chart without points."""
        if chart.is_empty:
            return ""
        number = len(self._charts)
        self._charts.append(self._chart(chart))
        marks = () if chart.per_run else [(e.step, e.text) for e in self._events if e.kind in STILL_MARKS]
        still = still_picture(chart, marks)
        return still.replace("<figure>", f'<figure data-chart="{number}">', 1)

    def data(self) -> str:
        """The block of numbers."""
        events = [
            {
                "kind": event.kind, "text": event.text, "run": event.run, "step": event.step,
                "tokens": event.tokens, "hours": event.hours, "until": event.until,
            }
            for event in self._events
        ]  # fmt: skip
        return json_block(
            {
                "runs": list(self._runs), "kinds": KINDS, "grids": self._grid_values, "charts": self._charts,
                "events": events,
            }
        )  # fmt: skip

    def _chart(self, chart: Chart) -> dict[str, Any]:
        return {
            "title": chart.title,
            "unit": chart.unit,
            "zero": chart.zero,
            "smooth": chart.smooth,
            "perRun": chart.per_run,
            "levels": [list(level) for level in chart.levels],
            "lines": [self._line(line) for line in chart.lines],
        }

    def _line(self, line: Line) -> dict[str, Any]:
        found: dict[str, Any] = {
            "label": line.label, "grid": self._grid(line.grid), "color": line.color, "y": list(line.values.y)
        }  # fmt: skip
        if line.values.low is not None and line.values.high is not None:
            found |= {"low": list(line.values.low), "high": list(line.values.high)}
        if line.values.bad:
            found["bad"] = {str(place): text for place, text in line.values.bad.items()}
        flags = {"interval": line.interval, "faint": line.faint, "off": line.off, "dots": line.dots}
        return found | {name: True for name, is_set in flags.items() if is_set}

    def _grid(self, grid: Grid) -> int:
        if id(grid) not in self._grids:
            self._grids[id(grid)] = len(self._grid_values)
            self._kept.append(grid)  # so that no other object gets its identity
            values = {"step": list(grid.step), "tokens": list(grid.tokens), "hours": list(grid.hours)}
            optional = {"count": grid.count, "breaks": grid.breaks}
            self._grid_values.append(values | {k: list(v) for k, v in optional.items() if v})
        return self._grids[id(grid)]


def json_block(value: Any) -> str:
    """JSON that can stand inside a page."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="report-data">{text}</script>'


def still_picture(chart: Chart, marks: Sequence[tuple[float, str]]) -> str:
    """The chart against the step, as SVG."""
    shown = [line for line in chart.lines if not line.off]
    most = max(60, STILL_POINTS // max(1, len(shown)))
    series: list[Series] = []
    for line in shown:
        series += _series(line, chart.smooth, most)
    hidden = len(chart.lines) - len(shown)
    unit = f"{chart.unit}; {len(shown)} of {len(chart.lines)} shown" if hidden else chart.unit
    return line_chart(
        chart.title, "step", unit, series, zero=chart.zero, marks=marks, levels=list(chart.levels)
    )


def _series(line: Line, smooth: bool, most: int) -> list[Series]:
    triples = zip(line.grid.step, line.values.y, strict=True)
    points = [(x, y) for x, y in triples if x is not None and y is not None]
    stride = max(1, -(-len(points) // most))
    if smooth and len(points) >= SMOOTH_FROM and not line.faint:
        soft = smoothed(points)[::stride]
        return [
            Series(line.label, points[::stride], line.color, faint=True),
            Series(line.label, soft, line.color),
        ]
    band: list[tuple[float, float, float]] = []
    if line.interval and line.values.low and line.values.high:
        ends = zip(line.grid.step, line.values.low, line.values.high, strict=True)
        band = [
            (x, low, high) for x, low, high in ends if x is not None and low is not None and high is not None
        ]
    return [Series(line.label, points[::stride], line.color, faint=line.faint, band=band)]
