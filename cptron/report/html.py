"""One self-contained `report.html` of a run: what changed, on what data, how fast.

Place in the flow: written when a run stops, and by hand for any run directory. Invariant: a pure function
of the files in the run directory; the page loads nothing and runs no script, so it can be mailed or opened
from a cluster's disk.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cptron.config.load import load_config, resolved_yaml
from cptron.config.schema import Config, SourceConfig
from cptron.errors import DataError
from cptron.forgetting.journal import JOURNAL, Verdict, read_verdicts
from cptron.json_text import parse_json
from cptron.report.charts import points_of, training_charts, validation_charts
from cptron.report.console import compact, guard_line, valid_sets
from cptron.report.forgetting import VERDICT_HEAD, forgetting_charts, verdict_rows
from cptron.report.forgetting import note as forgetting_note
from cptron.report.page import page
from cptron.report.sinks import METRICS_FILE, Record, read_records
from cptron.selection.record import read_selection

REPORT_FILE = "report.html"


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` from metrics.jsonl, config.yaml and, where present, summary.json,
    forgetting.jsonl and selection.json; returns its path.

    Raises `DataError` when there are no metrics and `ConfigError` when the configuration cannot be read.
    """
    metrics = run_dir / METRICS_FILE
    if not metrics.exists():
        raise DataError(
            f"{metrics} does not exist, so there is nothing to report; name the directory of a run"
        )
    config = load_config(run_dir / "config.yaml").config
    summary, records = _summary(run_dir / "summary.json"), read_records(metrics)
    verdicts, selection = read_verdicts(run_dir / JOURNAL), read_selection(run_dir)
    try:
        text = render(config, records, summary, verdicts, selection)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{metrics} has records that the trainer does not write ({error!r:.200}); restore the file"
        ) from error
    temporary = run_dir / (REPORT_FILE + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, run_dir / REPORT_FILE)
    return run_dir / REPORT_FILE


def _summary(path: Path) -> dict[str, Any]:
    """Empty where there is none."""
    try:
        summary = parse_json(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(summary, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it or remove it") from None
    return summary


def render(
    config: Config,
    records: Sequence[Record],
    summary: dict[str, Any],
    verdicts: Sequence[Verdict] = (),
    selection: dict[str, Any] | None = None,
) -> str:
    """The page as text."""
    steps = [record for record in records if record["kind"] == "step"]
    evals = [record for record in records if record["kind"] == "eval"]
    guards = [record for record in records if record["kind"] == "guard"]
    name = config.run.name or Path(config.run.dir).name
    body = [
        f"<header><h1>{escape(name)}</h1><p>{escape(_status(config, records))}</p></header>",
        _cards(steps, evals),
        _validation_table(evals),
        _forgetting(config, evals, verdicts),
        _selection(selection),
        _source_table(config, steps),
        _section(
            "Training", training_charts(config, steps, [(r["tried_step"], guard_line(r)) for r in guards])
        ),
        _guard_table(guards),
        _section("Validation", validation_charts(evals)),
        _details(config, records, summary),
    ]
    return page(name, "\n".join(part for part in body if part))


# --- text and tables ----------------------------------------------------------------------------------------------


def _status(config: Config, records: Sequence[Record]) -> str:
    if not records:
        return "no records yet"
    last = records[-1]
    ending = str(last["reason"]) if last["kind"] == "stop" else "running, or ended without a stop record"
    whole = last["step"] == config.train.steps
    return ending if whole else f"{ending} (step {last['step']} of {config.train.steps})"


def _cards(steps: Sequence[Record], evals: Sequence[Record]) -> str:
    cards = []
    if steps:
        tail = [record["loss_nats_per_token"] for record in steps[-max(1, len(steps) // 20) :]]
        cards += [
            ("tokens trained on", compact(steps[-1]["tokens_total"])),
            ("training loss, last 5 %", f"{_mean(tail):.4f}"),
            ("tokens/s, median", compact(_median(steps, "tokens_per_s"))),
            ("seconds a step, median", f"{_median(steps, 'step_time_s'):.3g}"),
            ("peak memory of rank 0", f"{max(_numbers(steps, 'mem_peak_gib'), default=0):.3g} GiB"),
        ]
    if len(evals) > 1:
        for name in valid_sets(evals[-1])[:2]:
            before, after = _before_after(evals, name)
            cards.append((f"{name}: loss change", f"{after - before:+.4f}"))
    inner = "".join(f"<div><b>{escape(value)}</b><span>{escape(key)}</span></div>" for key, value in cards)
    return f'<div class="cards">{inner}</div>' if cards else ""


def _validation_table(evals: Sequence[Record]) -> str:
    if not evals:
        return ""
    rows = []
    for name in valid_sets(evals[-1]):
        before, after = _before_after(evals, name)
        losses = [
            (record[f"valid/{name}/loss_nats_per_token"], record["step"]) for record in _having(evals, name)
        ]
        best, best_step = min(losses)
        tone = "up" if after > before else "down"
        ratio = f"{(_perplexity(evals[-1], name) / _perplexity(_having(evals, name)[0], name) - 1):+.1%}"
        rows.append(
            [
                escape(name),
                f"{before:.4f}",
                f"{after:.4f}",
                f'<span class="{tone}">{after - before:+.4f}</span>',
                f"{_perplexity(evals[-1], name):.2f}",
                ratio,
                f"{best:.4f} at step {best_step}",
                compact(evals[-1][f"valid/{name}/tokens"]),
            ]
        )
    head = ["set", "loss before", "loss after", "change", "perplexity", "change", "lowest loss", "tokens"]
    first, last = evals[0]["step"], evals[-1]["step"]
    note = f"Loss in nats per token. Before: step {first}; after: step {last}. A rise means forgetting."
    return f"<h2>What changed</h2><p>{note}</p>" + _table(head, rows, numbers=True)


def _forgetting(config: Config, evals: Sequence[Record], verdicts: Sequence[Verdict]) -> str:
    charts = forgetting_charts(config, evals, verdicts)
    if not charts:
        return ""
    rows = verdict_rows(verdicts)
    table = _table(VERDICT_HEAD, rows) if rows else "<p>Nothing was beyond it.</p>"
    return f"{_section('Forgetting', charts, forgetting_note(config))}{table}"


def _selection(selection: dict[str, Any] | None) -> str:
    if selection is None:
        return ""
    parts = [f"<h2>Which checkpoint</h2><p>Chosen {escape(selection['time'])}.</p>"]
    for table, reason in zip(selection["tables"], selection["reasons"], strict=True):
        parts.append(f"<pre>{escape(table)}</pre><p>{escape(reason)}</p>")
    return "".join(parts)


def _source_table(config: Config, steps: Sequence[Record]) -> str:
    if not steps:
        return ""
    last, total_share = steps[-1], sum(source.token_share for source in config.data.sources)
    counts = {source.name: last.get(f"tokens/{source.name}", 0) for source in config.data.sources}
    total = sum(counts.values()) or 1
    rows = []
    for source in config.data.sources:
        losses = _numbers(steps, f"loss_nats_per_token/{source.name}")
        epochs = _numbers(steps, f"epochs/{source.name}")
        window = max(1, len(losses) // 20)
        rows.append(
            [
                escape(source.name),
                f"{counts[source.name]:,}",
                f"{counts[source.name] / total:.1%}",
                _asked(config, source, total_share),
                f"{epochs[-1]:.3g}" if epochs else "-",
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
    return "<h2>What it was trained on</h2>" + _table(head, rows, numbers=True)


def _asked(config: Config, source: SourceConfig, total: float) -> str:
    """The configured share; of each stage where there are stages."""
    if not config.data.stages:
        return f"{source.token_share / total:.1%}"
    shares = []
    for stage in config.data.stages:
        of_stage = sum(stage.shares.values()) if stage.shares else total
        share = stage.shares.get(source.name, 0.0) if stage.shares else source.token_share
        shares.append(f"{share / of_stage:.1%}")
    return ", ".join(shares)


def _guard_table(guards: Sequence[Record]) -> str:
    if not guards:
        return ""
    rows = [[str(record["tried_step"]), record["event"], escape(guard_line(record))] for record in guards]
    skipped = max(int(record["tokens_skipped"]) for record in guards)
    note = f"{skipped:,} tokens were drawn and not trained on." if skipped else "No data was left out."
    return f"<h2>Spikes and what was done</h2><p>{note}</p>" + _table(["step", "what", ""], rows)


def _details(config: Config, records: Sequence[Record], summary: dict[str, Any]) -> str:
    starts = [record for record in records if record["kind"] == "start"]
    facts: dict[str, Any] = dict(starts[-1]) if starts else {}
    rows = [[escape(k), escape(_text(v))] for k, v in facts.items() if k not in ("kind", "step")]
    rows += [[escape(k), escape(_text(v))] for k, v in summary.items()]
    events = [
        [
            str(record["step"]),
            record["kind"],
            escape(_text(record.get("checkpoint", record.get("reason", "")))),
        ]
        for record in records
        if record["kind"] in ("start", "save", "stop")
    ]
    return "".join(
        [
            "<h2>The run</h2>",
            _table(["fact", "value"], rows) if rows else "",
            f"<details><summary>Starts, saves and stops ({len(events)})</summary>",
            _table(["step", "what", ""], events),
            "</details><details><summary>Configuration</summary>",
            f"<pre>{escape(resolved_yaml(config))}</pre></details>",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Cells are HTML already; with `numbers` all columns but the first are aligned to the right."""
    kind = ' class="numbers"' if numbers else ""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table{kind}><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(title: str, charts: Sequence[str], note: str = "") -> str:
    drawn, said = "".join(charts), f"<p>{escape(note)}</p>" if note else ""
    return f'<h2>{escape(title)}</h2>{said}<div class="charts">{drawn}</div>' if drawn else ""


# --- numbers ------------------------------------------------------------------------------------------------------


def _numbers(records: Sequence[Record], key: str) -> list[float]:
    return [y for _, y in points_of(records, "step", key)]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _median(records: Sequence[Record], key: str) -> float:
    return statistics.median(_numbers(records, key) or [float("nan")])


def _having(evals: Sequence[Record], name: str) -> list[Record]:
    return [record for record in evals if f"valid/{name}/loss_nats_per_token" in record]


def _before_after(evals: Sequence[Record], name: str) -> tuple[float, float]:
    key, having = f"valid/{name}/loss_nats_per_token", _having(evals, name)
    return float(having[0][key]), float(having[-1][key])


def _perplexity(record: Record, name: str) -> float:
    return float(record[f"valid/{name}/perplexity"])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
