"""`cptron logs RUN|JOBID`: what a job has printed, of all ranks or of one.

Place in the flow: after `submit`. Invariant: with --follow it ends when the job has, and never waits for a job that is
gone.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from cptron.errors import ConfigError, LaunchError
from cptron.launch.queue import states_of
from cptron.launch.record import JobRecord, jobs_of

POLL_S = 1.0
ASK_S = 15.0
"""How often the scheduler is asked whether the job still is."""
_LABEL = re.compile(r" *(\d+): ")


def main(argv: Sequence[str]) -> int:
    """Run `cptron logs`."""
    parser = argparse.ArgumentParser(prog="cptron logs", description="What a submitted job has printed.")
    parser.add_argument(
        "target", metavar="RUN|JOBID", help="of a run or a folder of jobs its newest log; 12_3 is a task"
    )
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the job has ended")
    parser.add_argument("--rank", type=int, metavar="N", help="lines of this rank alone")
    parser.add_argument(
        "--lines", type=int, default=40, metavar="N", help="of the end, 0 for all; default 40"
    )
    args = parser.parse_args(argv)
    if args.lines < 0:
        raise ConfigError(f"--lines {args.lines} must not be negative; use 0 for all")
    record, task = _job(args.target)
    path = _log(record, task, waits=args.follow)
    print(f"==> {path}", file=sys.stderr)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(_of_rank(iter(file), args.rank), maxlen=args.lines or None):
            print(line, end="")
        if args.follow:
            job_id = f"{record.job_id}_{task}" if task else record.job_id
            for line in _of_rank(_followed(file, job_id), args.rank):
                print(line, end="", flush=True)
    return 0


def _job(target: str) -> tuple[JobRecord, str]:
    """The job whose log is asked for, the newest that has one, and the task of an array."""
    records = jobs_of(target)
    task = target.partition("_")[2] if not Path(target).is_dir() else ""
    with_log = [record for record in records if _newest(record, task)]
    return (with_log or records)[-1], task


def _newest(record: JobRecord, task: str) -> Path | None:
    """Its log; of an array without a task, that of the task which wrote last."""
    if not record.array or task:
        path = record.log_of(task)
        return path if path.is_file() else None
    name = record.log_of("").name
    stem, suffix = name.removesuffix(".out"), ".out"
    try:
        found = [
            path
            for path in Path(record.jobs).iterdir()
            if path.name.startswith(stem) and path.suffix == suffix
        ]
    except OSError:
        return None
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _log(record: JobRecord, task: str, *, waits: bool) -> Path:
    while (path := _newest(record, task)) is None:
        states = states_of([record.job_id])
        if not any(state.is_active for state in states):
            raise LaunchError(
                f"job {record.job_id} has no log {record.log_of(task or 'TASK')} and is over; see `cptron status "
                f"{record.job_id}`"
            )
        if not waits:
            raise LaunchError(
                f"job {record.job_id} has not started, so there is no {record.log_of(task or 'TASK')} yet; `cptron "
                f"status {record.job_id}` says why, --follow waits for it"
            )
        time.sleep(ASK_S)
    return path


def _followed(file: TextIO, job_id: str) -> Iterator[str]:
    """Whole lines as they come, until the job has ended and all is read."""
    asked_s, part, is_over = time.monotonic(), "", False
    while True:
        while line := file.readline():
            part += line
            if part.endswith("\n"):
                yield part
                part = ""
        if is_over:
            if part:
                yield f"{part}\n"
            return
        time.sleep(POLL_S)
        if time.monotonic() - asked_s > ASK_S:
            asked_s = time.monotonic()
            is_over = not any(state.is_active for state in states_of([job_id]))


def _of_rank(lines: Iterator[str], rank: int | None) -> Iterator[str]:
    """Those that srun has labelled with this rank, without the label; all, as they are, for None."""
    for line in lines:
        if rank is None:
            yield line
        elif (label := _LABEL.match(line)) and int(label[1]) == rank:
            yield line[label.end() :]
