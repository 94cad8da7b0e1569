"""The full form: every fault by the dozen or hundred, as a table and as `benchmarks/results/faults.json`.

Usage: PYTHONPATH=tests python -m faults.injection [--only NAMES] [--trial N] [--seed S] [--show]

Place in the flow: `make faults`. Invariant: a row on record is of all its trials; a single trial is put nowhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faults.injection import record
from faults.injection.catalogue import FAULTS
from faults.injection.ground import Ground
from faults.injection.trials import run_trials
from tiny_world import World, make_world

from cptron.testing import stop_ranks


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make faults", description="Inject faults into runs and count.")
    parser.add_argument(
        "--only", default="", help=f"of {', '.join(fault.name for fault in FAULTS)}; with , between"
    )
    parser.add_argument("--trial", type=int, help="repeat one trial, and put nothing on record")
    parser.add_argument("--trials", type=int, help="so many of each fault, put on record")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--show", action="store_true", help="inject nothing, show the rows on record")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="JSON file to merge into")
    parser.add_argument("--work-dir", type=Path, help="default: a temporary directory")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Inject, put on record and show; the exit status is 1 where something was not survived."""
    arguments = parse(argv)
    if arguments.show:
        print(record.table(record.read(arguments.results)))
        return 0
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    unknown = sorted(set(names) - {fault.name for fault in FAULTS})
    if unknown:
        print(f"error: --only {', '.join(unknown)}: no such fault; see --help", file=sys.stderr)
        return 2
    work = (arguments.work_dir or Path(tempfile.mkdtemp(prefix="cptron-faults-"))).resolve()
    print(f"seed {arguments.seed}, in {work}", file=sys.stderr, flush=True)
    world = World(work / "world")
    if not world.config.exists():
        world.root.mkdir(parents=True)
        make_world(world.root)
        stop_ranks()
    ground = Ground(world, work)
    rows = []
    for fault in FAULTS:
        if names and fault.name not in names:
            continue
        number = arguments.trial
        numbers = range(arguments.trials or fault.full) if number is None else [number]
        count = run_trials(fault, ground, arguments.seed, numbers)
        rows.append(record.row(count, arguments.seed))
        print(record.table(rows[-1:]), file=sys.stderr, flush=True)
        if number is None:
            record.merge(rows[-1:], arguments.results)
    print(record.table(rows))
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
