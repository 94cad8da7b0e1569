"""Targets: what a run directory holds beside checkpoints: run.json, metrics, data log, guards' journal, summary."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_json import mutate_json, mutate_lines
from fuzz_target import Seed, Target
from fuzz_yaml import mutate_yaml
from targets_checkpoint import make_checkpoint
from targets_config import COMMENTED

from cptron.data.log import read_log
from cptron.inspect import describe, text_lines
from cptron.report.html import write_report
from cptron.report.sinks import JsonlSink, read_records
from cptron.train.journal import Entry, read_journal
from cptron.train.resume import find_run


def step(number: int) -> dict[str, Any]:
    """A record of a step."""
    return {
        "kind": "step",
        "step": number,
        "tokens_total": 64 * number,
        "loss_nats_per_token": 3.5 / number,
        "grad_norm": 0.5,
        "lr": 1e-4,
        "step_time_s": 0.2,
        "tokens_per_s": 900.0,
        "tokens/one": 32 * number,
        "loss_nats_per_token/one": "nan",
    }


def evaluation(number: int) -> dict[str, Any]:
    """A record of an evaluation."""
    names = {"loss_nats_per_token": 3.0, "perplexity": 20.1, "tokens": 100}
    return {
        "kind": "eval",
        "step": number,
        "tokens_total": 64 * number,
        **{f"valid/one/{key}": value for key, value in names.items()},
    }


def make_run(root: Path) -> Path:
    """A run of four steps."""
    records = [
        {"kind": "start", "step": 0, "world_size": 1},
        evaluation(0),
        *map(step, range(1, 5)),
        evaluation(4),
        {"kind": "stop", "step": 4, "reason": "done"},
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "config.yaml").write_text(COMMENTED)
    (root / "run.json").write_text(json.dumps({"name": "a", "identity": {"start": "x", "tokenizer": "y"}}))
    (root / "summary.json").write_text(json.dumps({"steps": 4, "tokens": 256, "wall_s": 3.5}))
    make_checkpoint(root)
    return root


def _seed(file: str) -> Any:
    return lambda root: [Seed(make_run(root), file)]


def read_run(directory: Path) -> Any:
    """What `inspect` says, for people and for programs; and what a resume finds."""
    facts = describe(str(directory))
    found = find_run(directory)
    return (
        json.dumps(facts),
        text_lines(facts),
        found and (str(found.checkpoint), json.dumps(dict(found.identity))),
    )


def read_metrics(directory: Path) -> Any:
    """Records, also as a resume cuts them."""
    records = read_records(directory / "metrics.jsonl")
    copy = directory / "copy.jsonl"
    copy.write_bytes((directory / "metrics.jsonl").read_bytes())
    JsonlSink(copy, 2).close()
    kept = read_records(copy)
    copy.unlink()
    return json.dumps(records), json.dumps(kept)


def check_metrics(directory: Path, value: Any) -> str | None:
    """Lines as json reads them."""
    lines = (directory / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    expected = json.dumps([json.loads(line) for line in lines])
    return None if value[0] == expected else "other records than json reads"


def read_page(directory: Path) -> str:
    """The report."""
    return write_report(directory).read_text()


def make_log(root: Path) -> list[Seed]:
    """Three steps of two sources, the shares changed once."""
    first = {
        "kind": "data",
        "step": 1,
        "batch": 1,
        "cursors": {"a": 4, "b": 4},
        "shares": {"a": 0.5, "b": 0.5},
        "since_mix": {"a": 4, "b": 4},
    }
    second = {"kind": "data", "step": 2, "batch": 2, "cursors": {"a": 8, "b": 8}}
    third = {
        "kind": "data",
        "step": 3,
        "batch": 3,
        "cursors": {"a": 14, "b": 10},
        "shares": {"a": 0.75, "b": 0.25},
        "since_mix": {"a": 6, "b": 2},
    }
    (root / "data_log.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in (first, second, third))
    )
    return [Seed(root, "data_log.jsonl")]


def make_journal(root: Path) -> list[Seed]:
    """Actions of each kind."""
    entry = Entry(
        batch=7,
        step=6,
        action="skip",
        cause="spike",
        loss_nats_per_token=9.5,
        grad_norm=float("inf"),
        z_loss=8.0,
        z_grad_norm=0.5,
        first=7,
        data="d",
    )
    lines = [entry.to_line()]
    lines.append(
        Entry(**{**asdict(entry), "batch": 12, "first": 9, "action": "rollback", "to_step": 6}).to_line()
    )
    lines.append(
        Entry(
            **{
                **asdict(entry),
                "batch": 20,
                "first": 20,
                "action": "log",
                "cause": "nonfinite",
                "found": "layer 3",
            }
        ).to_line()
    )
    (root / "journal.jsonl").write_bytes(b"".join(lines))
    return [Seed(root, "journal.jsonl")]


def check_journal(directory: Path, value: Any) -> str | None:
    """What was read is written the same again."""
    lines = (directory / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    found = [json.loads(line) for line in value]
    expected = [json.loads(line) for line in lines]
    same = all(entry | line == entry for entry, line in zip(found, expected, strict=True))
    return None if same else "other entries than json reads"


_INSPECT = "cptron.inspect, cptron.inspect_run, cptron.checkpoint.listing, cptron.train.resume.find_run"
TARGETS = [
    Target(
        format="run.json",
        name="run-file",
        reader=_INSPECT,
        make=_seed("run.json"),
        read=read_run,
        mutate=mutate_json,
    ),
    Target(
        format="run.json",
        name="run-metrics-inspected",
        reader=_INSPECT,
        make=_seed("metrics.jsonl"),
        read=read_run,
        mutate=mutate_lines,
        budget=0.5,
    ),
    Target(
        format="run.json",
        name="run-config-inspected",
        reader=_INSPECT,
        make=_seed("config.yaml"),
        read=read_run,
        mutate=mutate_yaml,
        budget=0.5,
    ),
    Target(
        format="run.json",
        name="run-manifest-inspected",
        reader=_INSPECT,
        make=_seed("checkpoints/step_00000003/manifest.json"),
        read=read_run,
        mutate=mutate_json,
        budget=0.5,
    ),
    Target(
        format="metrics.jsonl",
        name="metrics",
        reader="cptron.report.sinks",
        make=_seed("metrics.jsonl"),
        read=read_metrics,
        mutate=mutate_lines,
        check=check_metrics,
    ),
    Target(
        format="metrics.jsonl",
        name="metrics-reported",
        reader="cptron.report.html.write_report",
        make=_seed("metrics.jsonl"),
        read=read_page,
        mutate=mutate_lines,
    ),
    Target(
        format="summary.json",
        name="summary",
        reader="cptron.report.html.write_report",
        make=_seed("summary.json"),
        read=read_page,
        mutate=mutate_json,
        budget=0.5,
    ),
    Target(
        format="data log",
        name="data-log",
        reader="cptron.data.log.read_log",
        make=make_log,
        read=lambda directory: repr(list(read_log(directory / "data_log.jsonl"))),
        mutate=mutate_lines,
    ),
    Target(
        format="guards' journal",
        name="guards-journal",
        reader="cptron.train.journal.read_journal",
        make=make_journal,
        read=lambda directory: [
            entry.to_line().decode() for entry in read_journal(directory / "journal.jsonl")
        ],
        mutate=mutate_lines,
        check=check_journal,
    ),
]
