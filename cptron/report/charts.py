"""The charts of one run: which metrics, under which names.

Place in the flow: `view` (a run in few points) -> here -> `figure`. Invariant: a source or a validation set keeps its
colour in all charts of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cptron.errors import ConfigError
from cptron.report.places import numbers
from cptron.report.rates import planned_curve
from cptron.report.spec import Chart, Line, Values
from cptron.report.steplog import Numbers
from cptron.report.view import View

SHOWN_SOURCES = 12
"""Curves shown at first where there are more sources; the others are a click away."""
MOST_OTHERS = 12
"""Charts of metrics that have no place of their own."""
KNOWN = frozenset(
    (
        *(
            "kind",
            "step",
            "tokens_total",
            "tokens_skipped",
            "stage",
            "loss_nats_per_token",
            "lr",
            "grad_norm",
        ),
        *("step_time_s", "tokens_per_s", "model_tflop_per_s_per_rank", "mem_peak_gib", "unix_s"),
    )
)
BY_SOURCE = ("loss_nats_per_token", "tokens", "trained", "samples", "epochs", "share", "weight")


def loss_charts(view: View) -> list[Chart]:
    """Training loss in total, with what was replayed, and by source."""
    total = [view.means("all sources", "loss_nats_per_token", 0), *view.replayed("loss_nats_per_token")]
    charts = [Chart(title="Training loss", unit="nats per token", lines=total, smooth=True)]
    if len(view.sources) > 1:
        lines = list(_by_source(view, "loss_nats_per_token"))
        charts.append(Chart(title="Training loss by source", unit="nats per token", lines=lines, smooth=True))
    return _with_points(charts)


def optimizer_charts(view: View) -> list[Chart]:
    """Learning rate, as configured and used, and gradient norm."""
    rate, note = [], ""
    used = view.samples("used", "lr", 0)
    if any(value is not None for value in used.values.y):
        try:
            curve = planned_curve(view.log.config)
        except ConfigError as error:  # of stages whose ends depend on what the data is
            curve, note = [], f"not planned: {error}"
        grid = view.places.grid([step for step, _ in curve])
        planned = Line(label="as configured", grid=grid, values=Values([y for _, y in curve]), color=1)
        rate = [planned, used]
    norm = [view.means("gradient norm", "grad_norm", 0)]
    return _with_points(
        [
            Chart(title="Learning rate", unit=note, lines=rate, zero=True),
            Chart(
                title="Gradient norm", unit="global L2, before clipping", lines=norm, zero=True, smooth=True
            ),
        ]
    )


def speed_charts(view: View) -> list[Chart]:
    """Tokens/s of a rank, model FLOP/s or MFU, step time and memory."""
    charts = [
        Chart(
            title="Throughput",
            unit="tokens/s per rank",
            lines=[view.derived("tokens/s per rank", view.tokens_per_s_per_rank(), 0)],
            zero=True,
            smooth=True,
        )
    ]
    flops = view.steps.column("model_tflop_per_s_per_rank")
    if view.peak_tflop_per_s:
        mfu = [view.derived("MFU", flops / view.peak_tflop_per_s, 0)]
        unit = f"model FLOP/s over {view.peak_tflop_per_s:g} TFLOP/s ({view.gpu_name}); causal attention"
        charts.append(Chart(title="MFU", unit=unit, lines=mfu, zero=True, smooth=True))
    else:
        line = [view.means("model TFLOP/s", "model_tflop_per_s_per_rank", 0)]
        unit = "TFLOP/s per rank; causal attention, no recomputation"
        charts.append(Chart(title="Model FLOP/s", unit=unit, lines=line, zero=True, smooth=True))
    times = [view.means("seconds", "step_time_s", 0)]
    charts.append(Chart(title="Step time", unit="seconds", lines=times, zero=True, smooth=True))
    memory = [view.samples("GiB", "mem_peak_gib", 0)]
    charts.append(Chart(title="Peak memory of rank 0", unit="GiB", lines=memory, zero=True))
    return _with_points(charts)


def data_charts(view: View) -> list[Chart]:
    """The mixture against what was asked, passes over each source, tokens, and a proxy's weights."""
    charts = []
    if len(view.sources) > 1:
        charts.append(
            Chart(
                title="Mixture",
                unit="share of the tokens drawn of late; dashed: in force",
                lines=list(_mixture(view)),
                zero=True,
            )
        )
    for key, title, unit in (
        ("epochs", "Epochs by source", "passes since the start"),
        ("tokens", "Tokens by source", "drawn since the start"),
        ("weight", "Weight by source", "weight in the loss of a proxy"),
    ):
        charts.append(
            Chart(title=title, unit=unit, lines=list(_by_source(view, key, sampled=True)), zero=True)
        )
    return _with_points(charts)


def validation_charts(view: View) -> list[Chart]:
    """Loss of every set, and its change since the first evaluation."""
    losses, changes = [], []
    for color, name in enumerate(view.valid_sets, start=1):
        line = view.evaluated(name, f"valid/{name}/loss_nats_per_token", color)
        losses.append(line)
        first = next((value for value in line.values.y if value is not None), 0.0)
        moved = [None if value is None else value - first for value in line.values.y]
        changes.append(Line(label=name, grid=line.grid, values=Values(moved), color=color, dots=True))
    charts = [Chart(title="Validation loss", unit="nats per token", lines=losses)]
    if len(view.evals) > 1:
        first_step = int(view.evals.steps[0])
        unit = f"nats per token since step {first_step}; a rise is forgetting"
        charts.append(Chart(title="Change of validation loss", unit=unit, lines=changes, zero=True))
    return _with_points(charts)


def other_charts(view: View) -> list[Chart]:
    """Whatever else was measured at steps; curves of one name but for what follows its last `/` share a chart."""
    groups: dict[str, list[str]] = {}
    for name in view.steps.names:
        group = name.rpartition("/")[0] or name
        if name not in KNOWN and group not in BY_SOURCE and len(view.steps.finite(name)):
            groups.setdefault(group, []).append(name)
    charts = []
    for group, names in list(groups.items())[:MOST_OTHERS]:
        lines = [
            view.means(name.rpartition("/")[2], name, color, off=color > SHOWN_SOURCES)
            for color, name in enumerate(names, start=1)
        ]
        charts.append(Chart(title=group.replace("_", " ").replace("/", ", "), unit="", lines=lines))
    return _with_points(charts)


def _by_source(view: View, key: str, sampled: bool = False) -> Iterator[Line]:
    shown = set(view.largest_sources(SHOWN_SOURCES))
    for color, name in enumerate(view.sources, start=1):
        make = view.samples if sampled else view.means
        yield make(name, f"{key}/{name}", color, off=name not in shown)


def _mixture(view: View) -> Iterator[Line]:
    """What was drawn of late, by source, and the share in force; of several lengths the accounts are one."""
    shown = set(view.largest_sources(SHOWN_SOURCES))
    drawn = np.array([view.sampled_column(f"tokens/{name}") for name in view.sources])
    of_late = shares_of_late(np.nan_to_num(drawn))
    for color, (name, shares) in enumerate(zip(view.sources, of_late, strict=True), start=1):
        off = name not in shown
        yield Line(
            label=name, grid=view.sourced.grid, values=Values(numbers(shares, 6)), color=color, off=off
        )
    for color, name in enumerate(view.sources, start=1):
        asked = view.samples(f"{name}, asked", f"share/{name}", color, off=name not in shown)
        yield Line(
            label=asked.label, grid=asked.grid, values=asked.values, color=color, off=asked.off, faint=True
        )


def shares_of_late(tokens_SP: Numbers) -> Numbers:
    """Each source's part of the tokens drawn in the last twentieth of the points; tokens of sources x points."""
    points = tokens_SP.shape[1]
    window = max(1, points // 20)
    before = np.concatenate([np.zeros((len(tokens_SP), window)), tokens_SP], axis=1)[:, :points]
    drawn = np.maximum(tokens_SP - before, 0.0)
    total = drawn.sum(axis=0)
    shares: Numbers = np.divide(drawn, total, out=np.full_like(drawn, np.nan), where=total > 0)
    return shares


def _with_points(charts: Sequence[Chart]) -> list[Chart]:
    kept = []
    for chart in charts:
        lines = [line for line in chart.lines if any(value is not None for value in line.values.y)]
        if lines:
            kept.append(
                Chart(
                    title=chart.title, unit=chart.unit, lines=lines, zero=chart.zero, levels=chart.levels,
                    smooth=chart.smooth, per_run=chart.per_run,
                )
            )  # fmt: skip
    return kept
