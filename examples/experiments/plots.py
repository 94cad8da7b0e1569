"""Charts of the results, each an SVG file that stands alone.

Place in the flow: `results.json` -> here -> `docs/experiments/*.svg`. Invariant: a pure function of the results; drawn
by the package's own charts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cptron.forgetting.bootstrap import Interval
from cptron.report.page import style
from cptron.report.svg import HEIGHT, LEFT, WIDTH, Series, line_chart
from examples.experiments.claims import by_share, change

HEAD = 58
"""Height of title and legend."""
OLD_COLOR, NEW_COLOR = 2, 3
LABEL_WIDTH = 7.0
"""Of a character of a legend, about."""


def charts(results: Mapping[str, Any]) -> dict[str, str]:
    """File name -> content."""
    found = {}
    for name in dict.fromkeys(run["experiment"] for run in results["runs"]):
        runs = by_share([run for run in results["runs"] if run["experiment"] == name])
        found[f"{name}_replay.svg"] = _over_shares(name, runs)
        found[f"{name}_forgetting.svg"] = _over_tokens(name, runs, "forgetting/old", "Old text")
        found[f"{name}_learning.svg"] = _over_tokens(name, runs, "learning/new", "New text")
    return found


def _over_shares(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    series = []
    for suite, color in (("old", OLD_COLOR), ("new", NEW_COLOR)):
        ends = [(run["replay_percent"], change(run, suite)) for run in runs]
        series.append(_banded(f"{suite} text", ends, color))
    unit = "change of loss at the end, nats per token; area: 95 % interval"
    return standalone(
        line_chart(f"{name}: replay", "share of replay, %", unit, series, zero=True),
        [line.label for line in series],
    )


def _over_tokens(name: str, runs: Sequence[Mapping[str, Any]], key: str, what: str) -> str:
    series = []
    for color, run in enumerate(runs, start=1):
        ends = [
            (record["tokens_total"], _interval(record, f"{key}/change"))
            for record in run["evaluations"]
            if f"{key}/change_nats" in record
        ]
        series.append(_banded(f"{run['replay_percent']} % replay", ends, color))
    epsilon = runs[0]["epsilon_nats"]
    levels = [(epsilon, f"epsilon {epsilon:g}")] if key == "forgetting/old" else []
    unit = "change of loss, nats per token; area: 95 % interval"
    chart = line_chart(f"{name}: {what.lower()}", "tokens trained on", unit, series, zero=True, levels=levels)
    return standalone(chart, [line.label for line in series])


def _banded(label: str, ends: Sequence[tuple[float, Interval]], color: int) -> Series:
    points = [(x, interval.estimate) for x, interval in ends]
    return Series(label, points, color, band=[(x, interval.low, interval.high) for x, interval in ends])


def _interval(record: Mapping[str, Any], prefix: str) -> Interval:
    return Interval(record[f"{prefix}_nats"], record[f"{prefix}_low"], record[f"{prefix}_high"])


def standalone(figure: str, labels: Sequence[str]) -> str:
    """A figure of a report as a file: with its title, its legend and the style of the page inside."""
    title, unit = re.findall(r"<figcaption><b>(.*?)</b> <small>(.*?)</small>", figure)[0]
    inner = re.findall(r"<svg [^>]*>(.*)</svg>", figure)[0]
    keys, x = [], LEFT
    colors = re.findall(r'<i class="k (s\d)"></i>', figure)
    for label, color in zip(labels if colors else (), colors, strict=True):  # one line has no legend
        keys.append(
            f'<line class="{color}" stroke="currentColor" stroke-width="3" x1="{x}" x2="{x + 16}" y1="42" y2="42"/>'
        )
        keys.append(f'<text x="{x + 22}" y="46">{escape(label)}</text>')
        x += 46 + round(LABEL_WIDTH * len(label))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + HEAD}" font-family="sans-serif">'
        f"<style>{style('page')}</style>"
        f'<rect width="{WIDTH}" height="{HEIGHT + HEAD}" style="fill: var(--card)"/>'
        f'<text x="{LEFT}" y="22"><tspan style="fill: var(--ink); font-weight: 600">{title}</tspan>'
        f'<tspan dx="8">{unit}</tspan></text>{"".join(keys)}'
        f'<g transform="translate(0 {HEAD})">{inner}</g></svg>\n'
    )
