"""The benchmark of checkpoints: saves and loads of a real run beside a plain copy of the same bytes, in the same run.

Usage: python -m benchmarks.checkpoint.run [--rounds 3] [--show] [--work-dir DIR]

Place in the flow: `make bench-checkpoint`. Invariant: copy, saves of both kinds and load take turns; the
copy is of the checkpoint that was just written, forced to disk as the checkpoint was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.checkpoint.one import make_inputs
from benchmarks.data.measure import ROOT, Rounds, run_process
from benchmarks.data.results import machine, versions
from cptron.durable import replace_text

RESULTS = ROOT / "benchmarks" / "results" / "checkpoint.json"
GOAL_BANDWIDTH = 0.7
GOAL_STALL = 0.10
GOAL_STEP = 1.15


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, record and show."""
    parser = argparse.ArgumentParser(description="Measure saves and loads against a copy of the same bytes.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="measure nothing, show the results on record")
    parser.add_argument(
        "--work-dir", type=Path, default=ROOT / ".cache" / "bench-checkpoint", help="needs 25 GB"
    )
    args = parser.parse_args(argv)
    if not args.show:
        found = measure(args.work_dir, args.rounds)
        stamp = {
            "machine": machine(),
            "versions": versions(),
            "command": f"python -m benchmarks.checkpoint.run --rounds {args.rounds}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        replace_text(RESULTS, json.dumps({**found, **stamp}, indent=1) + "\n")
    show(json.loads(RESULTS.read_text()))
    return 0


def measure(work: Path, rounds: int) -> dict[str, Any]:
    """Medians and spreads of all rounds."""
    make_inputs(work)
    answers: dict[str, list[dict[str, Any]]] = {"sync": [], "async": [], "load": [], "copy": []}
    memory: dict[str, int] = {}
    for number in range(rounds):
        for kind in ("sync", "async"):
            run = work / kind
            for path in (run, work / f"{kind}_empty"):
                shutil.rmtree(path, ignore_errors=True)
            words = [f"checkpoint.asynchronous={str(kind == 'async').lower()}", "checkpoint.keep_last=1"]
            done = run_process(
                [sys.executable, "-m", "benchmarks.checkpoint.one", "train", run, work, *words]
            )
            answers[kind].append(json.loads(done.stdout.splitlines()[-1]))
            memory[kind] = max(memory.get(kind, 0), done.peak_bytes)
        checkpoint = Path(answers["sync"][-1]["checkpoint"])
        answers["copy"].append({"copy_s": copy_s(checkpoint, work / "copied")})
        words = [sys.executable, "-m", "benchmarks.checkpoint.one", "load", str(work / "sync"), str(work)]
        answers["load"].append(json.loads(run_process(words).stdout.splitlines()[-1]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    shutil.rmtree(work)
    return _results(answers, memory)


def copy_s(source: Path, target: Path) -> float:
    """Seconds to copy all files of a directory and force them to disk, read from the disk."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started_s = time.perf_counter()
    for number, path in enumerate(files):
        with path.open("rb") as stream, (target / str(number)).open("wb") as copied:
            shutil.copyfileobj(stream, copied, 1 << 24)
            copied.flush()
            os.fsync(copied.fileno())
    took_s = time.perf_counter() - started_s
    shutil.rmtree(target)
    return took_s


def _results(answers: dict[str, list[dict[str, Any]]], memory: dict[str, int]) -> dict[str, Any]:
    def all_of(kind: str, key: str, first: int = 0) -> Rounds:
        return Rounds(tuple(value for answer in answers[kind] for value in answer[key][first:]))

    size = answers["sync"][0]["bytes"]
    times = {
        "copy": Rounds.of(answers["copy"], "copy_s"),
        "save": all_of("sync", "stall_s"),
        "load": Rounds.of(answers["load"], "load_s"),
        "load, proof alone": Rounds.of(answers["load"], "proven_s"),
        "stall of an asynchronous save, first": Rounds(tuple(a["stall_s"][0] for a in answers["async"])),
        "stall of an asynchronous save, later": all_of("async", "stall_s", 1),
        "asynchronous save, until published": all_of("async", "published_s"),
        "step": all_of("async", "quiet_step_s"),
        "step during a save": all_of("async", "busy_step_s"),
    }
    median = {name: rounds.median for name, rounds in times.items()}
    ratios = {
        "save bandwidth / copy": median["copy"] / median["save"],
        "load bandwidth / copy": median["copy"] / median["load"],
        "stall / synchronous save": median["stall of an asynchronous save, later"] / median["save"],
        "step during a save / step": median["step during a save"] / median["step"],
    }
    return {
        "bytes": size,
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "spread_s": {name: [round(value, 3) for value in rounds.spread] for name, rounds in times.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "peak_bytes": memory,
        "goal": f"bandwidths >= {GOAL_BANDWIDTH} of a copy, stall <= {GOAL_STALL}, step <= {GOAL_STEP}",
        "met": ratios["save bandwidth / copy"] >= GOAL_BANDWIDTH
        and ratios["load bandwidth / copy"] >= GOAL_BANDWIDTH
        and ratios["stall / synchronous save"] <= GOAL_STALL
        and ratios["step during a save / step"] <= GOAL_STEP,
        "load_average": os.getloadavg()[0],
    }


def show(found: dict[str, Any]) -> None:
    """A table."""
    print(f"{found['bytes'] / 1e9:.2f} GB; {found['machine']}; {found['date']}")
    for name, value in found["seconds"].items():
        low, high = found["spread_s"][name]
        print(f"  {name:<40} {value:8.2f} s   {low:.2f} to {high:.2f}")
    for name, value in found["ratios"].items():
        print(f"  {name:<40} {value:8.2f}")
    print(f"  {found['goal']}: {'met' if found['met'] else 'not met'}")


if __name__ == "__main__":
    sys.exit(main())
