"""Line charts as inline SVG, drawn by hand so that a report needs no plotting package and no network.

Place in the flow: below `html`. Colours are CSS classes (`s0` to `s7`) of the page, so one chart serves
light and dark. Invariant: every finite point lies inside the axes, and axes carry round numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from cptron.report.console import compact

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 40
MAX_POINTS = 800
"""Points drawn of one series; more are averaged in equal runs, since a screen cannot show them."""
MARKED_POINTS = 40
"""Series up to this length get a mark at every point."""
NUM_COLORS = 8


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points `(x, y)` in order of x. A `faint` one is the noisy background of another and has no
    label, `dots` are marks without a line between them; neither is in the legend."""

    label: str
    points: Sequence[tuple[float, float]]
    color: int
    faint: bool = False
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    """`(x, low, high)` in order of x, all finite: drawn as an area behind the line."""


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    levels: Sequence[tuple[float, str]] = (),
) -> str:
    """A titled figure with legend, axes and lines; `zero` makes 0 part of the y axis, `marks` are (x, text) of
    upright lines, `levels` (y, text) of level ones. Empty when no point is finite."""
    xs = [x for line in series for x, y in line.points if math.isfinite(y)]
    xs += [x for line in series for x, _, _ in line.band] if xs else []
    series = [replace(line, points=_drawn_points(line)) for line in series]
    ys = [y for line in series for _, y in line.points] + ([0.0] if zero else []) + [y for y, _ in levels]
    ys += [y for line in series for _, *ends in line.band for y in ends]
    if not xs:
        return ""
    y_ticks = ticks(min(ys), max(ys), 6)
    x_low, x_high = _x_range(min(xs), max(xs))
    x_ticks = [x for x in ticks(x_low, x_high, 7) if x_low <= x <= x_high]
    frame = _Frame(x_low, x_high, y_ticks[0], y_ticks[-1])
    upright = [_mark(frame, x, text) for x, text in marks if x_low <= x <= x_high]
    behind = [*(_band(frame, line) for line in series), *(_level(frame, y, text) for y, text in levels)]
    parts = [
        _axes(frame, x_ticks, y_ticks, x_label),
        *behind,
        *upright,
        *(_line(frame, line) for line in series),
    ]
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    labelled = [line for line in series if not line.faint and not line.dots]
    keys = "".join(f'<span><i class="k {_color(line)}"></i>{escape(line.label)}</span>' for line in labelled)
    legend = f'<div class="legend">{keys}</div>' if len(labelled) > 1 else ""
    caption = f"<figcaption><b>{escape(title)}</b> <small>{escape(y_label)}</small></figcaption>"
    return f"<figure>{caption}{legend}{svg}</figure>"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, evenly spaced, the first at or below `low` and the last at or above
    `high`."""
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1e-200):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of evenly spaced ticks, all in the same unit and with the digits that tell them apart."""
    step, largest = values[1] - values[0], max(map(abs, values))
    if largest < 1e-2:
        return [f"{value:.3g}".replace("e-0", "e-") if value else "0" for value in values]
    power = next((p for p in (12, 9, 6, 3) if largest >= 10.0 ** max(p, 4)), 0)
    unit, step = {12: "T", 9: "G", 6: "M", 3: "k", 0: ""}[power], step / 10**power
    decimals = next((d for d in range(9) if math.isclose(step, round(step, d), rel_tol=1e-6)), 9)
    return [f"{value / 10**power:.{decimals}f}{unit}" if value else "0" for value in values]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each y replaced by the mean of its neighbours: a centred window of about a fiftieth of the series."""
    half = max(1, len(points) // 100)
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Data ranges of the plot area."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _drawn_points(line: Series) -> list[tuple[float, float]]:
    """The finite points, at most MAX_POINTS of a line."""
    points = [(x, y) for x, y in line.points if math.isfinite(y)]
    stride = 1 if line.dots else max(1, -(-len(points) // MAX_POINTS))
    runs = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _x_range(low: float, high: float) -> tuple[float, float]:
    """From the first point, or from 0 where that is near, to the last."""
    return (0.0 if 0 <= low <= 0.1 * high else low), (high if high > low else low + 1.0)


def _color(line: Series) -> str:
    return f"s{line.color % NUM_COLORS}" + (" dash" if line.color >= NUM_COLORS else "")


def _axes(frame: _Frame, x_ticks: list[float], y_ticks: list[float], x_label: str) -> str:
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y, kind = frame.y(value), "zero" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(f'<text x="{frame.x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _mark(frame: _Frame, x: float, text: str) -> str:
    at = f'x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
    return f'<line class="mark" {at}><title>{escape(text)}</title></line>'


def _level(frame: _Frame, y: float, text: str) -> str:
    at = f'y1="{frame.y(y):.1f}" y2="{frame.y(y):.1f}"'
    label = f'<text x="{WIDTH - RIGHT}" y="{frame.y(y) - 5:.1f}" text-anchor="end">{escape(text)}</text>'
    return f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" {at}/>{label}'


def _band(frame: _Frame, line: Series) -> str:
    if not line.band:
        return ""
    upper = [f"{frame.x(x):.1f},{frame.y(high):.1f}" for x, _, high in line.band]
    lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(line.band)]
    return f'<polygon class="{_color(line)}" points="{" ".join(upper + lower)}"/>'


def _line(frame: _Frame, line: Series) -> str:
    if not line.points:
        return ""
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
    drawn = f'<polyline class="{_color(line)}{" faint" if line.faint else ""}" points="{path}"/>'
    if line.dots:
        drawn = ""
    elif line.faint or len(line.points) > MARKED_POINTS:
        return drawn
    marks = "".join(
        f'<circle class="{_color(line)}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6">'
        f"<title>{escape(line.label)}: {y:.5g} at {compact(x)}</title></circle>"
        for x, y in line.points
    )
    return drawn + marks
