"""`make fuzz`: every reader on thousands of damaged files; a table, and `benchmarks/results/fuzz.json`.

    python tests/fuzz/fuzz_run.py [--inputs 100000] [--seed 0] [--workers 2] [--only NAME ...] [--no-results]

Place in the flow: the long form of `test_fuzz.py`. Invariant: the same seed gives the same inputs; each finding is kept
as a file under `.cache/fuzz`, so that it can be read again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fuzz_target import Target
from fuzz_targets import ROOMS, all_targets, targets_of
from fuzz_worker import Finding, Outcome, run_target

from cptron.durable import replace_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
KEPT = ROOT / ".cache" / "fuzz"


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, show and record; 1 when there is a finding."""
    parser = argparse.ArgumentParser(description="Fuzz every reader of files.")
    parser.add_argument("--inputs", type=int, default=100_000, help="mutated inputs over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--room", choices=ROOMS, help="targets of this room alone")
    parser.add_argument("--only", nargs="*", default=[], help="names of targets")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows are written")
    parser.add_argument("--no-results", action="store_true", help="write none")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help="directory for inputs on which a reader failed"
    )
    args = parser.parse_args(argv)
    targets = targets_of(args.room) if args.room else all_targets()
    targets = [target for target in targets if target.name in args.only] if args.only else targets
    share = args.inputs / sum(target.budget for target in targets)
    print(f"seed {args.seed}, {args.inputs} inputs over {len(targets)} targets", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as root,
        get_context("fork").Pool(args.workers, maxtasksperchild=1) as pool,
    ):
        jobs = [
            (args.room, target.name, root, args.seed, round(share * target.budget), args.kept)
            for target in sorted(targets, key=lambda target: -target.budget)
        ]
        done = {
            outcome.target: (outcome, seconds) for outcome, seconds in pool.starmap(_run, jobs, chunksize=1)
        }
    rows = [_row(target, *done[target.name]) for target in targets]
    print(table(rows))
    if not args.no_results:
        _record(rows, args)
    return 1 if any(row["findings"] for row in rows) else 0


def _run(room: str | None, name: str, root: str, seed: int, count: int, kept: Path) -> tuple[Outcome, float]:
    started = time.monotonic()
    (target,) = [target for target in (targets_of(room) if room else all_targets()) if target.name == name]
    outcome = run_target(target, Path(root), seed, count)
    shutil.rmtree(Path(root) / name)
    for finding in outcome.findings:
        _keep(finding, kept)
    print(f"  {name}: {outcome.inputs} inputs, {len(outcome.findings)} findings", file=sys.stderr, flush=True)
    return outcome, time.monotonic() - started


def _row(target: Target, outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "format": target.format,
        "target": target.name,
        "reader": target.reader,
        "inputs": outcome.inputs,
        "errors": outcome.refused,
        "correct": outcome.read,
        "findings": len(outcome.findings),
        "seconds": round(seconds, 1),
        "slowest_input_cpu_s": round(outcome.slowest_s, 2),
        "peak_bytes": outcome.peak_bytes,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows for people, with their sum."""
    total = {
        key: sum(row[key] for row in rows) for key in ("inputs", "errors", "correct", "findings", "seconds")
    }
    most = {"slowest_input_cpu_s": max(row["slowest_input_cpu_s"] for row in rows)}
    total |= most | {"peak_bytes": max(row["peak_bytes"] for row in rows), "format": "all", "target": ""}
    lines = [
        f"{'format':<28}{'target':<26}{'inputs':>8}{'errors':>8}{'correct':>8}{'found':>6}"
        f"{'slowest s':>10}{'peak MiB':>9}"
    ]
    for row in [*rows, total]:
        lines.append(
            f"{row['format']:<28}{row['target']:<26}{row['inputs']:>8}{row['errors']:>8}{row['correct']:>8}"
            f"{row['findings']:>6}{row['slowest_input_cpu_s']:>10.2f}{row['peak_bytes'] / 2**20:>9.1f}"
        )
    return "\n".join(lines)


def _keep(finding: Finding, kept: Path) -> None:
    """Write the input beside what it did."""
    kept.mkdir(parents=True, exist_ok=True)
    name = f"{finding.target}-{hashlib.sha256(finding.where.encode()).hexdigest()[:8]}"
    (kept / f"{name}.input").write_bytes(finding.content)
    facts = {"target": finding.target, "file": finding.file, "number": finding.number, "kind": finding.kind}
    (kept / f"{name}.json").write_text(
        json.dumps(facts | {"where": finding.where, "what": finding.what}, indent=1)
    )
    shown = finding.what.strip().splitlines()[-1][:300]
    print(f"FINDING {finding.target}: {finding.where} (input {finding.number}, kept as {name})\n  {shown}")


def _record(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.data.results import machine, versions

    result = {
        "rows": list(rows),
        "inputs": sum(row["inputs"] for row in rows),
        "findings": sum(row["findings"] for row in rows),
        "seed": args.seed,
        "machine": machine(),
        "versions": versions(),
        "command": f"python tests/fuzz/fuzz_run.py --inputs {args.inputs} --seed {args.seed}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
    }
    replace_text(args.results, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
