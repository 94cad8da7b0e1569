"""Does training in FP8 follow training in bf16? Runs on real text, step by step the same tokens.

    python -m benchmarks.engine.fp8_curve [--steps 200]                  after `make demo`, whose tokens it uses
    python -m benchmarks.engine.fp8_curve --start smollm2 --recipes tensorwise      its weights too: an hour on a CPU

From random weights of a small model, because then the loss falls by several nats and a curve that lags behind shows;
or from SmolLM2-135M, which is what continued pretraining does.

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
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("tensorwise", "rowwise")
SMOOTH_STEPS = 20
GOAL = 0.01
SETTINGS = (
    "parallel.local_ranks=0",
    "data.seq_length=128",
    "data.valid=[]",
    "eval.at_start=false",
    "eval.every_steps=0",
    "train.precision=bf16",
    "checkpoint.every_steps=0",
    "log.tensorboard=false",
)
STARTS = {
    "random": (
        "train.global_batch_size=4",
        "train.micro_batch_size=4",
        "optim.lr=1.0e-3",
        "optim.lr_min=1.0e-4",
        "optim.warmup_steps=2",
        "start.mode=random",
        "start.checkpoint=",
        "model.architecture=benchmarks/engine/fp8_curve_model.json",
    ),
    "smollm2": ("train.global_batch_size=2", "train.micro_batch_size=2", "optim.warmup_steps=10"),
}
"""Settings of each start, beside `SETTINGS`; the others are those of `CONFIG`."""


def train(name: str, recipe: str, steps: int, start: str) -> list[float]:
    """Training losses of one run, by step."""
    run = RUNS / name
    shutil.rmtree(run, ignore_errors=True)
    words = ["train", str(CONFIG), f"run.dir={run}", f"train.steps={steps}", *SETTINGS, *STARTS[start]]
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
    parser.add_argument("--start", choices=sorted(STARTS), default="random", help="weights (default: random)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES, help="default: both")
    args = parser.parse_args()
    steps, start = args.steps, args.start
    reference = train("bf16", "none", steps, start)
    fp8 = {f"fp8_{recipe}": train(f"fp8_{recipe}", recipe, steps, start) for recipe in args.recipes}
    curves = {"bf16": reference, **fp8}
    distances = {
        name: float(np.abs(smoothed(curve) / smoothed(reference) - 1).max()) for name, curve in fp8.items()
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
        "settings": [*SETTINGS, *STARTS[start], "fp8.without_hardware=emulate"],
        "machine": machine(),
        "versions": versions(),
        "command": " ".join(["python -m benchmarks.engine.fp8_curve", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    path = RESULTS / ("fp8_curve.json" if start == "random" else f"fp8_curve_{start}.json")
    replace_text(path, json.dumps(result, indent=1) + "\n")
    print(f"{path.relative_to(ROOT)}: largest distance {largest:.2%} (goal {GOAL:.0%})")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
