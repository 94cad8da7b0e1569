"""The benchmark of conversion: `cptron convert` and `export` beside a plain copy of the same bytes, in the same run.

Usage: python -m benchmarks.convert.run [--cases NAMES] [--rounds 3] [--show] [--work-dir DIR]

Place in the flow: `make bench-convert`. Invariant: copy, import and export of a case take turns, each with the same
state of the page cache and each forced to disk; a row is kept only when every bit of the model was compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.convert.models import CASES, LLAMA_70B, Case, make_hollow, make_model
from benchmarks.data.measure import ROOT, BenchmarkError, Rounds, Run, run_process
from benchmarks.data.results import machine, versions
from cptron.durable import replace_text

RESULTS = ROOT / "benchmarks" / "results" / "convert.json"
GOAL_RATIO = 2.5
GOAL_BYTES = 2 * 10**9
"""Beside the largest tensor."""
COPY = (
    "import os, shutil, sys\n"
    "for path in sorted(os.scandir(sys.argv[1]), key=lambda entry: entry.name):\n"
    "    with open(path, 'rb') as source, open(os.path.join(sys.argv[2], path.name), 'wb') as target:\n"
    "        shutil.copyfileobj(source, target, 1 << 24)\n"
    "        target.flush()\n"
    "        os.fsync(target.fileno())\n"
)
"""What it is compared with: the same bytes, read and forced to disk."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, record and show."""
    parser = argparse.ArgumentParser(description="Measure conversion against a copy of the same bytes.")
    parser.add_argument("--cases", default="", help="names of cases, with ; between (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="measure nothing, show the rows on record")
    parser.add_argument(
        "--work-dir", type=Path, default=ROOT / ".cache" / "bench-convert", help="needs 50 GB"
    )
    args = parser.parse_args(argv)
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if not args.show:
        words = [word for word in args.cases.split(";") if word]
        command = " ".join(
            ["python -m benchmarks.convert.run", *(f"--cases {args.cases}" for _ in words[:1])]
        )
        stamp = {"machine": machine(), "versions": versions(), "command": command}
        for case in CASES:
            if not words or any(word == case.name for word in words):
                row = measure(case, args.work_dir, args.rounds)
                rows[case.name] = {**row, **stamp, "date": datetime.now(UTC).isoformat(timespec="seconds")}
                replace_text(RESULTS, json.dumps(rows, indent=1) + "\n")
        if not words or LLAMA_70B.name in words:
            row = dry_run(LLAMA_70B, args.work_dir)
            rows[LLAMA_70B.name] = {**row, **stamp, "date": datetime.now(UTC).isoformat(timespec="seconds")}
            replace_text(RESULTS, json.dumps(rows, indent=1) + "\n")
    show(rows)
    return 0


def measure(case: Case, work: Path, rounds: int) -> dict[str, Any]:
    """A row: medians of the rounds, and what `--verify` said once."""
    print(case.name, file=sys.stderr, flush=True)
    model = make_model(case, work / case.name.replace(" ", "_").replace(",", ""))
    runs: dict[str, list[Run]] = {"copy": [], "convert": [], "export": []}
    for number in range(rounds):
        copied, checkpoint, exported = (work / name for name in ("copied", "checkpoint", "exported"))
        for path in (copied, checkpoint, exported):
            shutil.rmtree(path, ignore_errors=True)
        copied.mkdir()
        runs["copy"].append(_run([sys.executable, "-c", COPY, model, copied]))
        shutil.rmtree(copied)
        runs["convert"].append(_run([*_CPTRON, "convert", model, checkpoint]))
        runs["export"].append(_run([*_CPTRON, "export", checkpoint, exported]))
        if number < rounds - 1:
            shutil.rmtree(checkpoint)
        _require_same(model, exported)
        shutil.rmtree(exported)
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    verified = json.loads(_run([*_CPTRON, "verify", checkpoint, model]).stdout.splitlines()[-1])
    shutil.rmtree(checkpoint)
    shutil.rmtree(model)
    return _row(case, runs, verified)


def _row(case: Case, runs: dict[str, list[Run]], verified: dict[str, Any]) -> dict[str, Any]:
    times = {name: Rounds(tuple(run.wall_s for run in values)) for name, values in runs.items()}
    peak = {name: max(run.peak_bytes for run in values) for name, values in runs.items()}
    largest = 2 * case.arch.vocab_size * case.arch.hidden_size
    ratios = {name: times[name].median / times["copy"].median for name in ("convert", "export")}
    is_whole = "layers" not in case.name
    return {
        "family": case.config["model_type"],
        "bytes": verified["bytes"],
        "wall_s": {name: round(rounds.median, 2) for name, rounds in times.items()},
        "spread_s": {name: [round(value, 2) for value in rounds.spread] for name, rounds in times.items()},
        "ratio_to_copy": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "peak_bytes": peak,
        "largest_tensor_bytes": largest,
        "verified": verified,
        "goal": f"ratio <= {GOAL_RATIO}, memory <= 2 GB + the largest tensor" if is_whole else "none",
        "met": max(ratios.values()) <= GOAL_RATIO
        and max(peak["convert"], peak["export"]) <= GOAL_BYTES + largest
        if is_whole
        else None,
        "cpu_s": {name: round(max(run.cpu_s for run in values), 1) for name, values in runs.items()},
    }


def dry_run(case: Case, work: Path) -> dict[str, Any]:
    """What `convert --dry-run` counts for a model whose files have no content, and what it takes."""
    model = make_hollow(case, work / "hollow")
    run = _run([*_CPTRON, "convert", "--dry-run", model, work / "checkpoint"])
    shutil.rmtree(model)
    return {
        "family": case.config["model_type"],
        "plan": json.loads(run.stdout.splitlines()[-1]),
        "wall_s": {"dry run": round(run.wall_s, 2)},
        "peak_bytes": {"dry run": run.peak_bytes},
    }


_CPTRON = [sys.executable, "-W", "ignore", "-m", "cptron.cli"]


def _run(words: Sequence[str | Path]) -> Run:
    """A process that finds no model in the page cache, where the machine allows that to be emptied; but its libraries,
    which every side but the copy would have to read first."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    run_process(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "import torch, transformers.models.auto.modeling_auto, tokenizers",
        ]
    )
    return run_process(words)


def _require_same(model: Path, exported: Path) -> None:
    """The export has the bytes of the source."""
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as ours, (exported / path.name).open("rb") as theirs:
            while block := ours.read(1 << 24):
                if block != theirs.read(1 << 24):
                    raise BenchmarkError(f"{exported / path.name} differs from its source")


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table."""
    print(f"{'model':<28}{'GB':>7}{'copy s':>9}{'import':>9}{'export':>9}{'peak MB':>9}  met")
    for name, row in rows.items():
        if "plan" in row:
            print(f"{name:<28}{row['plan'].get('bytes', 0) / 1e9:>7.1f}  dry run: {json.dumps(row['plan'])}")
            continue
        ratio, peak = row["ratio_to_copy"], max(row["peak_bytes"]["convert"], row["peak_bytes"]["export"])
        print(
            f"{name:<28}{row['bytes'] / 1e9:>7.2f}{row['wall_s']['copy']:>9.1f}{ratio['convert']:>8.2f}x"
            f"{ratio['export']:>8.2f}x{peak / 1e6:>9.0f}  {'-' if row['met'] is None else row['met']}"
        )


if __name__ == "__main__":
    sys.exit(main())
