"""Rows of the result: one JSON object each, kept in `benchmarks/results/engine_DEVICE.json`, and the table for people.

Place in the flow: every measured peer of every case ends here. Invariant: a row that is measured again replaces its
older self and nothing else; goals are judged anew from the rows whenever rows change, never stored by hand.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.data import results as common
from benchmarks.data.measure import ROOT
from benchmarks.engine.batches import squares_of
from benchmarks.engine.cases import CASES, Case, Goal
from cptron.durable import replace_text
from cptron.model.flops import train_flops

FORMULA = (
    "cptron.model.flops.train_flops: 6 x (weights of the layers and of the output layer) x tokens "
    "+ 6 x layers x heads x head_dim x sum of squared document lengths (causal); nothing for recomputation"
)

MAX_SPREAD = 2.0
"""Between the slowest and the fastest step of a row that a goal is judged by."""


def results_path(device: str) -> Path:
    """Where the rows of a device are kept."""
    return ROOT / "benchmarks" / "results" / f"engine_{device}.json"


def machine() -> str:
    """CPU, cores and memory, and the GPU where there is one."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return common.machine() + gpu


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; those of the peers' own come with their answers."""
    wanted = ("python", "cptron", "torch", "transformers", "megatron-core", "numpy")
    return {name: number for name, number in common.versions().items() if name in wanted}


def command_line(words: Sequence[str]) -> str:
    """The command that measures a row again."""
    return common.command_line(words).replace("benchmarks.data.run", "benchmarks.engine.run")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One peer in one case."""

    row: str
    """Case and peer."""
    case: str
    peer: str
    precision: str
    """What the peer trains in, in its own words."""
    layers: int
    sequence: int
    micro_batch: int
    documents: str
    step_time_s: float | None
    """Median; None where the device had too little memory."""
    spread_s: list[float] = field(default_factory=list)
    """Smallest and largest."""
    cpu_s: float | None = None
    """Of a step, all threads of the process together, median of the rounds: suffers less from a busy machine."""
    tokens_per_s: float | None = None
    model_tflops: float | None = None
    ceiling_tflops: float = 0.0
    """Of one matrix product in this precision, the best of all rounds."""
    share_of_ceiling: float | None = None
    peak_bytes: int = 0
    losses: list[float] = field(default_factory=list)
    """Of all steps of the first round, warm-up included."""
    rounds: int
    warmup_steps: int
    steps: int
    threads: int
    note: str = ""
    goals: list[dict[str, Any]] = field(default_factory=list)
    flops_formula: str = FORMULA
    machine: str = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)
    command: str = field(default_factory=lambda: command_line(sys.argv[1:]))
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    load_average: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    """Of the machine when the row was finished; a busy machine shows."""


def row_of(
    case: Case,
    peer: str,
    answers: Sequence[Mapping[str, Any]],
    ceiling_tflops: float,
    counts: Mapping[str, int],
    note: str = "",
) -> Row:
    """The row of a peer, from what its processes said, one a round; `counts`: rounds, warm-up steps and so on."""
    told = [answer for answer in answers if "step_s" in answer]
    common_fields: dict[str, Any] = {
        "row": f"{case.name}/{peer}",
        "case": case.name,
        "peer": peer,
        "layers": case.arch.num_layers,
        "sequence": case.seq_length,
        "micro_batch": case.micro_batch,
        "documents": f"mean length {case.mean_document}" if case.mean_document else "one a row",
        "ceiling_tflops": ceiling_tflops,
        **counts,
    }
    if len(told) < len(answers) or not told:
        return Row(**common_fields, precision="-", step_time_s=None, note="out of memory")
    step_s = [seconds for answer in told for seconds in answer["step_s"]]
    median_s = statistics.median(step_s)
    tflops = train_flops(case.arch, case.tokens, round(squares_of(case))) / median_s / 1e12
    return Row(
        **common_fields,
        precision=told[0]["precision"],
        versions=versions() | told[0].get("packages", {}),
        step_time_s=median_s,
        spread_s=[min(step_s), max(step_s)],
        cpu_s=statistics.median(answer["cpu_s"] for answer in told),
        tokens_per_s=case.tokens / median_s,
        model_tflops=tflops,
        share_of_ceiling=tflops / ceiling_tflops if ceiling_tflops else None,
        peak_bytes=max(answer["peak_bytes"] for answer in told),
        losses=told[0]["losses"],
        note=note,
    )


def read(path: Path) -> list[dict[str, Any]]:
    """All rows on record."""
    return common.read(path)


def merge(new: Sequence[Row], path: Path) -> list[dict[str, Any]]:
    """Put rows on record and judge all goals; returns all rows in the order of the cases."""
    rows = {row["row"]: row for row in read(path)} | {row.row: asdict(row) for row in new}
    judge(rows)
    order = [case.name for case in CASES]
    ordered = sorted(
        rows.values(), key=lambda row: order.index(row["case"]) if row["case"] in order else len(order)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")
    return ordered


def judge(rows: Mapping[str, dict[str, Any]]) -> None:
    """Fill in the goals of cptron's rows."""
    for case in CASES:
        ours = rows.get(f"{case.name}/cptron")
        if ours is not None:
            ours["goals"] = [_judged(goal, ours, rows) for goal in case.goals]


def _judged(goal: Goal, ours: Mapping[str, Any], rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    name, quantity, against, least = goal
    theirs = ours if quantity == "tflops" else _fastest(against, rows)
    value = ours["model_tflops"] if quantity == "tflops" else _times(ours, theirs)
    sure = value is not None and _is_steady(ours) and _is_steady(theirs)
    return {"goal": name, "value": value, "met": value >= least if sure else None}


def _is_steady(row: Mapping[str, Any] | None) -> bool:
    """Something else ran on the machine when one step took much longer than another."""
    return row is not None and row["spread_s"][1] <= MAX_SPREAD * row["spread_s"][0]


def _fastest(name: str, rows: Mapping[str, dict[str, Any]]) -> Mapping[str, Any] | None:
    """The row of this name, or of the same peer in another of its ways, whichever is the fastest."""
    found = [
        row
        for key, row in rows.items()
        if (key == name or key.startswith(name + "-")) and row["tokens_per_s"] is not None
    ]
    return max(found, key=lambda row: row["tokens_per_s"], default=None)


def _times(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> float | None:
    """How many times more tokens a second; None unless both were measured on the same model and machine."""
    if theirs is None or ours["tokens_per_s"] is None:
        return None
    if (ours["layers"], ours["machine"]) != (theirs["layers"], theirs["machine"]):
        return None
    return float(ours["tokens_per_s"] / theirs["tokens_per_s"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for people, in a monospaced font."""
    cells = [
        (
            "case",
            "peer",
            "layers",
            "step s",
            "CPU s",
            "tokens/s",
            "TFLOP/s",
            "of ceiling",
            "peak GB",
            "loss",
            "goals",
        )
    ]
    for row in rows:
        measured = row["step_time_s"] is not None
        spread = f" [{row['spread_s'][0]:.4g} to {row['spread_s'][1]:.4g}]" if measured else ""
        losses = f"{row['losses'][0]:.4f} to {row['losses'][-1]:.4f}" if row["losses"] else "-"
        cells.append(
            (
                row["case"],
                row["peer"],
                str(row["layers"]),
                f"{row['step_time_s']:.4g}{spread}" if measured else row["note"],
                f"{row['cpu_s']:.4g}" if measured else "-",
                f"{row['tokens_per_s']:,.0f}" if measured else "-",
                f"{row['model_tflops']:.4g}" if measured else "-",
                f"{row['share_of_ceiling']:.0%}" if row["share_of_ceiling"] else "-",
                f"{row['peak_bytes'] / 1e9:.2f}" if measured else "-",
                losses,
                "; ".join(_shown(goal) for goal in row["goals"]) or "-",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _shown(goal: Mapping[str, Any]) -> str:
    if goal["value"] is None:
        return f"{goal['goal']}: -"
    verdict = {True: "yes", False: "NO", None: "(too unsteady to tell)"}[goal["met"]]
    return f"{goal['goal']}: {goal['value']:.4g} {verdict}"
