"""`cptron watch RUN`: the live block of a run from its files, on any machine that sees them.

Place in the flow: beside a run, or after it. Imports no torch. Invariant: only reads; what it shows is what rank 0 has
written, with its age.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cptron.config.load import load_config
from cptron.errors import DataError
from cptron.report.block import block
from cptron.report.follow import Follower
from cptron.report.screen import Screen, is_screen
from cptron.report.sinks import METRICS_FILE
from cptron.report.status import Record, Status

PLAIN_WIDTH = 120
CONFIG_FILE = "config.yaml"


def main(argv: Sequence[str]) -> int:
    """Run `cptron watch RUN [--every S] [--once]`."""
    parser = argparse.ArgumentParser(prog="cptron watch", description="How a run stands, from its files.")
    parser.add_argument("run", type=Path, help="the run's directory")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="print the block and end; so it does in a pipe")
    args = parser.parse_args(argv)
    if not 0 < args.every <= 3600:
        raise DataError(f"--every {args.every} must be more than 0 and at most 3600 seconds; use e.g. 2")
    watched = Watched(args.run)
    watched.look()
    if args.once or not is_screen(sys.stdout):
        _print(watched)
        return 0
    screen = Screen()
    while True:
        width, height = screen.size
        screen.draw(watched.lines(width, height))
        if watched.status.ending:
            return 0
        time.sleep(args.every)
        watched.look()


class Watched:
    """A run as its files show it."""

    def __init__(self, run: Path) -> None:
        self._run = run
        if not (run / CONFIG_FILE).is_file():
            raise DataError(f"{run} has no {CONFIG_FILE}, so no run has begun there; give a run's directory")
        self._follower = Follower(run / METRICS_FILE)
        self.status = self._fresh()

    def look(self) -> None:
        """Take in what was added."""
        records, is_new = self._follower.read()
        if is_new:
            self.status = self._fresh()
        for record in records:
            try:
                self.status.take(record, _made_s(record))
            except (KeyError, TypeError, ValueError):
                self._follower.bad_lines += 1

    def lines(self, width: int, height: int = 100) -> list[tuple[str, bool]]:
        """The block, and what is wrong with the file."""
        lines = block(self.status, time.time(), width, height)
        if self._follower.bad_lines:
            text = f"{self._follower.bad_lines} line(s) of {METRICS_FILE} are no records; passed over"
            lines = [*lines[: height - 1], (text[:width], True)]
        return lines

    def _fresh(self) -> Status:
        return Status.of(load_config(self._run / CONFIG_FILE, []).config, str(self._run))


def _made_s(record: Record) -> float | None:
    """When a record was made, in seconds since 1970; None where it does not say so."""
    value = record.get("unix_s")
    return float(value) if isinstance(value, int | float) else None


def _print(watched: Watched) -> None:
    for line, _ in watched.lines(PLAIN_WIDTH):
        print(line)
