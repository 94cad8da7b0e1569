"""Directories of runs as the trainer leaves them, made up: quick to write, and with everything that a report shows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.journal import JOURNAL, Verdict, append_verdict
from cptron.forgetting.reaction import Reaction
from cptron.forgetting.watch import Watch
from cptron.selection.record import SELECTION

STEPS = 200
MISSING = range(121, 125)
"""Steps that the log lacks."""
TOKENS = 1000
"""Of a step."""
CONFIG = """\
run: {{dir: {dir}, name: {name}}}
start: {{checkpoint: b}}
data: {{seq_length: 100, sources: {sources}, valid: {valid}}}
train: {{steps: {steps}, global_batch_size: 10}}
optim: {{lr: {lr}, warmup_steps: 10}}
"""


def write_run(
    run: Path,
    name: str,
    steps: int = STEPS,
    lr: float = 1e-3,
    sources: Sequence[str] = ("manuals", "web"),
    sets: Sequence[str] = ("new", "old"),
    spike: int = 0,
) -> Path:
    """A run of so many steps. The 50th loss is no number; steps 71 to 80 were made twice; a guard, a policy, a
    checkpoint and a choice are there. The log lacks steps, and has a line that was cut off."""
    run.mkdir(parents=True)
    source = [{"name": each, "path": "p", "token_share": 1.0} for each in sources]
    valid = [{"name": each, "path": "p", "suite": each} for each in sets]
    quoted = {"sources": json.dumps(source), "valid": json.dumps(valid), "name": json.dumps(name)}
    text = CONFIG.format(dir=json.dumps(str(run)), steps=steps, lr=lr, **quoted)
    (run / "config.yaml").write_text(text, encoding="utf-8")
    draw = random.Random(0)
    lines = [start(0)]
    for step in [*range(1, 81), *range(71, steps + 1)]:
        if step % 20 == 1 and (step == 1 or step > 71) and sets:
            lines.append(evaluation(step - 1, sets))
        if step == 71 and lines[-1]["step"] == 80:
            lines += [{"kind": "stop", "step": 80, "reason": "stopped by SIGTERM after step 80"}, start(70)]
        lines.append(step_record(step, sources, draw, spike))
        if step == 100:
            lines += [guard(step), {"kind": "save", "step": step, "checkpoint": "c/step_00000100"}]
    lines = [line for line in lines if line["kind"] != "step" or line["step"] not in MISSING]
    lines.append({"kind": "stop", "step": steps, "reason": f"finished {steps} steps"})
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.write('{"kind": "step", "st')  # a crash in the middle of a line
    if sets:
        append_verdict(run / JOURNAL, policy(60))
        (run / SELECTION).write_text(json.dumps(selection(run)))
    return run


def start(step: int) -> dict[str, Any]:
    """Of a start on two ranks."""
    return {"kind": "start", "step": step, "layout": "tp1_pp1_dp2", "world_size": 2, "device": "cpu"}


def step_record(step: int, sources: Sequence[str], draw: random.Random, spike: int) -> dict[str, Any]:
    """As the trainer writes it."""
    loss = 2 + math.exp(-step / 60) + draw.gauss(0, 0.05)
    record: dict[str, Any] = {
        "kind": "step", "step": step, "tokens_total": TOKENS * step, "tokens_skipped": 0,
        "loss_nats_per_token": "nan" if step == 50 else loss, "lr": 1e-3, "grad_norm": 50.0 if step == spike else 1.0,
        "step_time_s": 2.0, "tokens_per_s": TOKENS / 2, "model_tflop_per_s_per_rank": 12.5, "mem_peak_gib": 3.0,
    }  # fmt: skip
    for place, name in enumerate(sources):
        record |= {
            f"loss_nats_per_token/{name}": loss + place, f"tokens/{name}": TOKENS * step // len(sources),
            f"epochs/{name}": step / 50, f"share/{name}": 1 / len(sources),
        }  # fmt: skip
    return record


def evaluation(step: int, sets: Sequence[str]) -> dict[str, Any]:
    """As the trainer writes it."""
    record: dict[str, Any] = {"kind": "eval", "step": step, "tokens_total": TOKENS * step}
    for place, name in enumerate(sets):
        loss = 2.5 - min(step, 400) / 400 * (1 - 1.5 * place)
        record |= {f"valid/{name}/loss_nats_per_token": loss, f"valid/{name}/perplexity": math.exp(loss)}
        record[f"valid/{name}/tokens"] = 5000
    return record


def guard(step: int) -> dict[str, Any]:
    """A spike that was let pass."""
    return {
        "kind": "guard", "event": "log", "step": step, "tried_step": step, "batch": step, "first": step,
        "cause": "spike", "loss_nats_per_token": 7.5, "grad_norm": 21.0, "z_loss": 9.25, "z_grad_norm": 1.0,
        "found": "", "to_step": 0, "tokens_skipped": 0,
    }  # fmt: skip


def selection(run: Path) -> dict[str, Any]:
    """The choice of the only checkpoint."""
    row = {
        "name": "checkpoints/step_00000100", "path": str(run / "checkpoints" / "step_00000100"), "is_chosen": True,
        "is_pareto": True, "tokens_total": 100 * TOKENS, "old_change_nats": None, "new_change_nats": None,
    }  # fmt: skip
    return {
        "format_version": 1,
        "time": "2026-01-01",
        "reason": "the only one",
        "grid": None,
        "candidates": [row],
    }


def policy(step: int) -> Verdict:
    """An alarm and what was done."""
    change = Interval(0.07, 0.06, 0.08)
    return Verdict(
        0, step, TOKENS * step, "alarm", "raise_replay", "replay times 2", change, None, (), 1, Watch(), Reaction()
    )  # fmt: skip
