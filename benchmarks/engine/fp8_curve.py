"""Does training in FP8 follow training in bf16? Runs on real text from random weights, step by step the same tokens.

    python -m benchmarks.engine.fp8_curve [--steps 200]     after `make demo`, whose tokens it uses

From random weights, because then the loss falls by several nats and a curve that lags behind shows.

Place in the flow: beside the throughput table; on a machine without FP8 products the numbers are the exact emulation's.
Invariant: both curves come from `cptron train` with one configuration; only `fp8.recipe` differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.data.measure import ROOT
from benchmarks.engine.results import machine, versions
from cptron.durable import replace_text
from cptron.report.sinks import read_records

CONFIG = Path("examples/quickstart/quickstart.yaml")
RUNS = Path("runs/fp8_curve")
RESULT = ROOT / "benchmarks" / "results" / "fp8_curve.json"
SMOOTH_STEPS = 20
GOAL = 0.01
SETTINGS = (
    "parallel.local_ranks=0",
    "data.seq_length=128",
    "data.valid=[]",
    "eval.at_start=false",
    "eval.every_steps=0",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
    "train.precision=bf16",
    "optim.lr=1.0e-3",
    "optim.lr_min=1.0e-4",
    "optim.warmup_steps=2",
    "start.mode=random",
    "start.checkpoint=",
    "model.architecture=benchmarks/engine/fp8_curve_model.json",
    "checkpoint.every_steps=0",
    "log.tensorboard=false",
)
CURVES = {"bf16": "none", "fp8_tensorwise": "tensorwise", "fp8_rowwise": "rowwise"}


def train(name: str, recipe: str, steps: int) -> list[float]:
    """Training losses of one run, by step."""
    run = RUNS / name
    shutil.rmtree(run, ignore_errors=True)
    words = ["train", str(CONFIG), f"run.dir={run}", f"train.steps={steps}", *SETTINGS]
    words += [f"fp8.recipe={recipe}", "fp8.without_hardware=emulate"]
    subprocess.run([sys.executable, "-m", "cptron.cli", *words], cwd=ROOT, check=True)
    records = read_records(run / "metrics.jsonl")
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return [float(record["loss_nats_per_token"]) for record in records if record["kind"] == "step"]


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Means over windows of `SMOOTH_STEPS` steps."""
    window = min(SMOOTH_STEPS, len(losses))
    return np.convolve(losses, np.ones(window) / window, mode="valid")


def main() -> int:
    """Train, compare, write the result; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description="Loss curve of FP8 beside that of bf16.")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    steps = parser.parse_args().steps
    curves = {name: train(name, recipe, steps) for name, recipe in CURVES.items()}
    reference, *others = (smoothed(curve) for curve in curves.values())
    names = list(CURVES)[1:]
    distances = {
        n: float(np.abs(curve / reference - 1).max()) for n, curve in zip(names, others, strict=True)
    }
    largest = max(distances.values())
    result = {
        "what": f"largest distance of the loss curves, means over {SMOOTH_STEPS} steps, relative to bf16",
        "largest_relative_distance": distances,
        "goal": GOAL,
        "met": largest <= GOAL,
        "last_losses_nats_per_token": {name: float(smoothed(curve)[-1]) for name, curve in curves.items()},
        "losses_nats_per_token": {name: [round(loss, 5) for loss in curve] for name, curve in curves.items()},
        "steps": steps,
        "settings": [*SETTINGS, "fp8.without_hardware=emulate"],
        "machine": machine(),
        "versions": versions(),
        "command": f"python -m benchmarks.engine.fp8_curve --steps {steps}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    replace_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(f"{RESULT.relative_to(ROOT)}: largest distance {largest:.2%} (goal {GOAL:.0%})")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
