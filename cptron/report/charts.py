"""The charts of a report: which metrics against what.

Place in the flow: between `html` and `svg`. Invariant: a source or a validation set keeps its colour in all
charts.
"""

from __future__ import annotations

from collections.abc import Sequence

from cptron.config.schema import Config
from cptron.report.console import valid_sets
from cptron.report.rates import planned_curve
from cptron.report.sinks import Record
from cptron.report.svg import Series, line_chart, smoothed

SMOOTH_FROM = 60
"""Steps from which a curve is drawn smoothed over its raw values."""


Marks = Sequence[tuple[float, str]]


def training_charts(config: Config, steps: Sequence[Record], marks: Marks = ()) -> list[str]:
    """Loss in total and by source, learning rate, gradient norm and throughput against the step; `marks` in total loss
    and gradient norm."""
    return [*_loss_charts(config, steps, marks), *_optimizer_charts(config, steps, marks)]


def validation_charts(evals: Sequence[Record]) -> list[str]:
    """Loss of every set, and its change since the first evaluation, against the tokens trained on."""
    losses, changes = [], []
    for color, name in enumerate(valid_sets(evals[-1]) if evals else [], start=1):
        points = points_of(evals, "tokens_total", f"valid/{name}/loss_nats_per_token")
        losses.append(Series(name, points, color))
        changes.append(Series(name, [(x, y - points[0][1]) for x, y in points], color))
    charts = [line_chart("Validation loss", "tokens trained on", "nats per token", losses)]
    if len(evals) > 1:
        title, unit = (
            "Change of validation loss",
            "nats per token since the start; a rise is forgetting",
        )
        charts.append(line_chart(title, "tokens trained on", unit, changes, zero=True))
    return charts


def points_of(records: Sequence[Record], x: str, y: str) -> list[tuple[float, float]]:
    """Records that have the metric; one that was not finite is stored as text and left out."""
    return [(float(r[x]), float(r[y])) for r in records if isinstance(r.get(y), int | float)]


def _loss_charts(config: Config, steps: Sequence[Record], marks: Marks) -> list[str]:
    total = _curve("all sources", points_of(steps, "step", "loss_nats_per_token"), 0)
    charts = [line_chart("Training loss", "step", "nats per token", total, marks=marks)]
    if len(config.data.sources) > 1:
        losses, tokens = [], []
        for color, source in enumerate(config.data.sources, start=1):
            points = points_of(steps, "step", f"loss_nats_per_token/{source.name}")
            losses.append(Series(source.name, _smooth(points), color))
            tokens.append(Series(source.name, points_of(steps, "step", f"tokens/{source.name}"), color))
        unit = "nats per token, smoothed" if len(steps) >= SMOOTH_FROM else "nats per token"
        charts.append(line_chart("Training loss by source", "step", unit, losses))
        charts.append(line_chart("Tokens by source", "step", "tokens since the start", tokens, zero=True))
        charts += _mix_charts(config, steps)
    return charts


def _mix_charts(config: Config, steps: Sequence[Record]) -> list[str]:
    """Passes over each source; and its share in force, and its weight in a proxy's loss, where these change."""
    charts = []
    for key, title, unit in (
        ("epochs", "Epochs by source", "passes since the start"),
        ("share", "Share by source", "share of the tokens in force"),
        ("weight", "Weight by source", "weight in the loss of a proxy"),
    ):
        curves = [points_of(steps, "step", f"{key}/{source.name}") for source in config.data.sources]
        moves = any(len({y for _, y in points}) > 1 for points in curves)
        if moves:
            series = [
                Series(source.name, points, color)
                for color, (source, points) in enumerate(
                    zip(config.data.sources, curves, strict=True), start=1
                )
            ]
            charts.append(line_chart(title, "step", unit, series, zero=True))
    return charts


def _optimizer_charts(config: Config, steps: Sequence[Record], marks: Marks) -> list[str]:
    used = points_of(steps, "step", "lr")
    planned = [Series("as configured", planned_curve(config), 1)] if used else []
    rate = [*planned, Series("used", used, 0)]
    norm = _curve("", points_of(steps, "step", "grad_norm"), 0)
    speed = _curve("", points_of(steps, "step", "tokens_per_s"), 0)
    return [
        line_chart("Learning rate", "step", "", rate, zero=True),
        line_chart("Gradient norm", "step", "global L2, before clipping", norm, zero=True, marks=marks),
        line_chart("Throughput", "step", "tokens/s, all ranks", speed, zero=True),
    ]


def _curve(label: str, points: list[tuple[float, float]], color: int) -> list[Series]:
    """The raw values, behind a smoothed line where there are many."""
    if len(points) < SMOOTH_FROM:
        return [Series(label, points, color)]
    return [Series(label, points, color, faint=True), Series(label, smoothed(points), color)]


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return smoothed(points) if len(points) >= SMOOTH_FROM else points
