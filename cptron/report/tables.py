"""The tables of a report on one run: numbers that a chart cannot show exactly.

Place in the flow: `view` -> here -> `html`. Invariant: every cell is escaped, whatever a name or a record holds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from cptron.config.load import resolved_yaml
from cptron.config.schema import Config, SourceConfig
from cptron.report.console import compact, duration, guard_line
from cptron.report.sinks import Record
from cptron.report.spec import KINDS, Event
from cptron.report.view import View

MOST_ROWS = 500
"""Of the table of events and of that of faults; the others are counted."""


def cards(view: View) -> str:
    """The few numbers to begin with."""
    steps, found = view.steps, []
    if len(steps):
        losses = steps.finite("loss_nats_per_token")
        speed = view.tokens_per_s_per_rank()
        rank = speed[[math.isfinite(value) for value in speed.tolist()]].tolist()
        found += [
            ("tokens trained on", _number(steps.last("tokens_total"))),
            ("training loss, last 5\u00a0%", f"{_mean(losses[-max(1, len(losses) // 20) :].tolist()):.4f}"),
            ("tokens/s, median", _number(_median(steps.finite("tokens_per_s").tolist()))),
            ("tokens/s per rank, median", _number(_median(rank))),
            ("seconds a step, median", f"{_median(steps.finite('step_time_s').tolist()):.3g}"),
        ]
        if view.peak_tflop_per_s:
            flops = _median(steps.finite("model_tflop_per_s_per_rank").tolist())
            found.append((f"MFU on {view.gpu_name}, median", f"{flops / view.peak_tflop_per_s:.1%}"))
        hours = view.places.one(float(steps.steps[-1]))[1]
        found.append(("time in steps", duration((hours or 0.0) * 3600)))
        memory = steps.finite("mem_peak_gib").tolist()
        found.append(("peak memory of rank 0", f"{max(memory, default=0):.3g} GiB"))
    if len(view.log.evals) > 1:
        for name in view.valid_sets[:3]:
            losses = view.evals.finite(f"valid/{name}/loss_nats_per_token")
            if len(losses) > 1:
                change = losses[-1] - losses[0]
                found.append((f"{name}: loss change", f'<span class="{_tone(change)}">{change:+.4f}</span>'))
    inner = "".join(
        f"<div><b>{value if value.startswith('<span') else escape(value)}</b><span>{escape(key)}</span></div>"
        for key, value in found
    )
    return f'<div class="cards">{inner}</div>' if found else ""


def validation_table(view: View) -> str:
    """Every set before and after."""
    if not len(view.evals):
        return ""
    rows = [row for name in view.valid_sets if (row := _validation_row(view, name))]
    head = ["set", "loss before", "loss after", "change", "perplexity", "change", "lowest loss", "tokens"]
    first, last = (int(view.evals.steps[place]) for place in (0, -1))
    note = f"Loss in nats per token. Before: step {first}; after: step {last}. A rise means forgetting."
    return section("What changed", f"<p>{note}</p>{table(head, rows, numbers=True)}")


def _validation_row(view: View, name: str) -> list[str]:
    losses = view.evals.column(f"valid/{name}/loss_nats_per_token")
    there = [place for place, loss in enumerate(losses.tolist()) if math.isfinite(loss)]
    if not there:
        return []
    before, after = float(losses[there[0]]), float(losses[there[-1]])
    best = min(there, key=lambda place: losses[place])
    perplexity = view.evals.last(f"valid/{name}/perplexity")
    ratio = math.exp(min(700.0, after - before)) - 1
    return [
        escape(name),
        f"{before:.4f}",
        f"{after:.4f}",
        f'<span class="{_tone(after - before)}">{after - before:+.4f}</span>',
        f"{perplexity:.2f}",
        f"{ratio:+.1%}",
        f"{losses[best]:.4f} at step {int(view.evals.steps[best])}",
        _number(view.evals.last(f"valid/{name}/tokens")),
    ]


def source_table(view: View) -> str:
    """What was drawn of each source, against what was asked."""
    if not len(view.steps):
        return ""
    config = view.log.config
    counts = {name: _or_zero(view.steps.last(f"tokens/{name}")) for name in view.sources}
    total, asked = sum(counts.values()) or 1.0, sum(source.token_share for source in config.data.sources)
    rows = []
    for source in config.data.sources:
        losses = view.steps.finite(f"loss_nats_per_token/{source.name}").tolist()
        epochs, window = view.steps.last(f"epochs/{source.name}"), max(1, len(losses) // 20)
        rows.append(
            [
                escape(source.name),
                f"{counts[source.name]:,.0f}",
                f"{counts[source.name] / total:.1%}",
                _asked(config, source, asked),
                f"{epochs:.3g}" if math.isfinite(epochs) else "-",
                f"{_mean(losses[:window]):.4f}" if losses else "-",
                f"{_mean(losses[-window:]):.4f}" if losses else "-",
            ]
        )
    head = [
        "source",
        "tokens seen",
        "share",
        "share asked for",
        "epochs",
        "loss, first 5 %",
        "loss, last 5 %",
    ]
    return table(head, rows, numbers=True)


def guard_table(view: View) -> str:
    """What the guards found and did."""
    guards = view.log.of_kind("guard")
    if not guards:
        return ""
    rows = [
        [str(record["tried_step"]), escape(record["event"]), escape(guard_line(record))] for record in guards
    ]
    skipped = max(int(record["tokens_skipped"]) for record in guards)
    note = f"{skipped:,} tokens were drawn and not trained on." if skipped else "No data was left out."
    shown = table(["step", "what", ""], rows[:MOST_ROWS]) + _left_out(len(rows))
    return section("Spikes and what was done", f"<p>{note}</p>{shown}")


def selection_part(view: View) -> str:
    """Which checkpoint was chosen and why."""
    selection = view.log.selection
    if selection is None:
        return ""
    parts = [f"<p>Chosen {escape(selection['time'])}.</p>"]
    for text, reason in zip(selection["tables"], selection["reasons"], strict=True):
        parts.append(f'<div class="scroll"><pre>{escape(text)}</pre></div><p>{escape(reason)}</p>')
    return section("Which checkpoint", "".join(parts))


def checkpoint_table(view: View) -> str:
    """What is on disk, the chosen one marked."""
    if not view.log.checkpoints:
        return ""
    chosen, rows = view.log.selected_step, []
    for facts in view.log.checkpoints:
        mark = ' <span class="chosen">selected</span>' if facts["step"] == chosen else ""
        cells = [_number(facts["tokens"]), _bytes(facts["bytes"]), facts["state"], facts["kept"]]
        rows.append([escape(str(facts["step"])) + mark, *(escape(str(cell)) for cell in cells)])
    return section("Checkpoints", table(["step", "tokens", "size", "state", "kept because"], rows))


def event_table(events: Sequence[Event]) -> str:
    """Resumes, repeated steps, faults, policy actions, gaps; not the checkpoints, which have their own."""
    shown = [event for event in events if event.kind not in ("save", "selected")]
    if not shown:
        return ""
    rows = [
        [
            f"{event.step:.0f}",
            "-" if event.tokens is None else compact(event.tokens),
            f'<i class="mark-{event.kind}"></i>{KINDS[event.kind]}',
            escape(event.text),
        ]
        for event in shown[:MOST_ROWS]
    ]
    return section("What happened", table(["step", "tokens", "kind", "what"], rows) + _left_out(len(shown)))


def details(view: View) -> str:
    """Facts of the last start and the summary; starts, saves and stops; the configuration."""
    starts = view.log.of_kind("start")
    facts: dict[str, Any] = dict(starts[-1]) if starts else {}
    rows = [[escape(k), escape(_text(v))] for k, v in facts.items() if k not in ("kind", "step")]
    rows += [[escape(k), escape(_text(v))] for k, v in view.log.summary.items()]
    events = [_event_row(r) for r in view.log.events if r["kind"] in ("start", "save", "stop")]
    return section(
        "The run",
        "".join(
            [
                table(["fact", "value"], rows) if rows else "",
                f"<details><summary>Starts, saves and stops ({len(events)})</summary>",
                table(["step", "what", ""], events[:MOST_ROWS]) + _left_out(len(events)),
                "</details><details><summary>Configuration</summary>",
                f'<div class="scroll"><pre>{escape(resolved_yaml(view.log.config))}</pre></div></details>',
            ]
        ),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Cells are HTML already; with `numbers` all columns but the first are aligned to the right."""
    kind = ' class="numbers"' if numbers else ""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table{kind}><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, body: str) -> str:
    """A titled part of the page."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _event_row(record: Record) -> list[str]:
    what = record.get("checkpoint", record.get("reason", ""))
    return [str(record["step"]), record["kind"], escape(_text(what))]


def _asked(config: Config, source: SourceConfig, total: float) -> str:
    """The configured share; of each stage where there are stages."""
    if not config.data.stages:
        return f"{source.token_share / total:.1%}"
    return ", ".join(f"{share:.1%}" for share in _stage_shares(config, source, total))


def _stage_shares(config: Config, source: SourceConfig, total: float) -> Iterator[float]:
    for stage in config.data.stages:
        of_stage = sum(stage.shares.values()) if stage.shares else total
        yield (stage.shares.get(source.name, 0.0) if stage.shares else source.token_share) / of_stage


def _left_out(count: int) -> str:
    return f"<p>{count - MOST_ROWS:,} more are not shown.</p>" if count > MOST_ROWS else ""


def _tone(change: float) -> str:
    return "up" if change > 0 else "down"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _number(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return compact(value) if math.isfinite(value) else "-"
    return str(value)


def _bytes(value: object) -> str:
    """`1.24 GB`."""
    if not isinstance(value, int):
        return str(value)
    text = compact(value)
    return f"{text[:-1]} {text[-1].replace('k', 'K')}B" if text[-1] in "kMGT" else f"{text} B"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
