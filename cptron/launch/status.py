"""`cptron status [RUN|JOBID]`: submitted jobs in plain words, and how far the run is.

Place in the flow: after `submit`, from any login node. Invariant: it only reads; without SLURM it still says what the
run's own files tell.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptron.errors import LaunchError
from cptron.launch.history import Ends, ends_of
from cptron.launch.progress import Progress, progress_of
from cptron.launch.queue import REASONS, STATES, JobState, states_of
from cptron.launch.record import JobRecord, jobs_of, records_in, user_list
from cptron.report.console import duration

RECENT = 10
CODES = {
    0: "finished",
    1: "a failure; see the log",
    2: "an error to mend; see the log",
    75: "stopped and saved",
    76: "a hang; see the folder stacks of the run",
}
"""Exit codes of docs/reliability.md."""
ENDED = ("FAILED", "COMPLETED", "UNKNOWN", "NOT ASKED")
"""States of which the exit code says more."""


def main(argv: Sequence[str]) -> int:
    """Run `cptron status`."""
    parser = argparse.ArgumentParser(prog="cptron status", description="What became of submitted jobs.")
    parser.add_argument("target", nargs="?", metavar="RUN|JOBID", help=f"default: the last {RECENT} jobs")
    parser.add_argument("--json", action="store_true", help="one JSON object a job")
    args = parser.parse_args(argv)
    records = jobs_of(args.target) if args.target else records_in(user_list())[-RECENT:]
    if not records:
        raise LaunchError(f"{user_list()} lists no jobs; submit one with `cptron submit`")
    states = _states([record.job_id for record in records])
    runs = dict.fromkeys(record.run_dir for record in records if record.run_dir)
    progress = {run: progress_of(Path(run)) for run in runs}
    for record in records:
        mine = [state for state in states if state.job_id.partition("_")[0] == record.job_id]
        ends = ends_of(record)
        if args.json:
            print(json.dumps(_facts(record, mine, ends, progress.get(record.run_dir))))
        else:
            print("\n".join(_lines(record, mine, ends)))
    for run, found in progress.items():
        if not args.json:
            print(f"run {run}: {_progress_text(found)}")
    return 0


def _states(job_ids: list[str]) -> list[JobState]:
    """What the scheduler says; where it cannot be asked the files still tell how far the run is."""
    try:
        return states_of(job_ids)
    except LaunchError as error:
        print(f"note: {error}", file=sys.stderr)
        return [JobState(job_id=job_id, state="NOT ASKED") for job_id in job_ids]


def _facts(
    record: JobRecord, states: list[JobState], ends: Ends, progress: Progress | None
) -> dict[str, Any]:
    return {
        "job": asdict(record),
        "states": [asdict(state) for state in states],
        "starts": ends.starts,
        "last_exit_code": ends.last_code,
        "progress": asdict(progress) if progress else None,
    }


def _lines(record: JobRecord, states: list[JobState], ends: Ends) -> list[str]:
    link = f", link {record.link} of {record.links}" if record.links > 1 else ""
    size = f"{record.nodes} node{'s' * (record.nodes > 1)}" + (f", {record.ranks} ranks" * (record.ranks > 1))
    lines = [
        f"job {state.job_id} {record.name} ({record.verb}, {size}{link}): {_state_text(state, ends)}"
        for state in states
    ]
    return [*lines, f"  log {record.log_of('TASK')}"]


def _state_text(state: JobState, ends: Ends) -> str:
    code = ends.last_code if state.exit_code is None else state.exit_code
    ended = not state.is_active and code is not None and state.state in ENDED
    parts = [
        f"has ended: exit code {code}, {CODES.get(code or 0, 'see the log')}" if ended else _word(state, ends)
    ]
    if state.state == "PENDING" and state.start not in ("", "N/A"):
        parts.append(f"expected to start at {state.start}")
    elif state.state == "RUNNING":
        parts += [f"since {state.used}, {state.left} left", f"on {state.nodes}"]
    restarts = max(state.restarts, ends.starts - 1 if "_" not in state.job_id else 0)
    if restarts:
        parts.append(f"started again {restarts} time{'s' * (restarts > 1)}")
    return ", ".join(parts)


def _word(state: JobState, ends: Ends) -> str:
    reason = state.reason.strip("()")
    if state.state == "PENDING":
        return f"waits {REASONS.get(reason, f'({reason})')}"
    if state.state == "CANCELLED" and reason == "DependencyNeverSatisfied":
        return "was dropped: the job before it finished, or did not end as it had to"
    if state.state == "UNKNOWN" and not ends.starts:
        return "never began, and is not known to the scheduler any more"
    return STATES.get(state.state, state.state)


def _progress_text(found: Progress | None) -> str:
    if found is None:
        return "has not begun"
    of = f" of {found.steps:,}" if found.steps else ""
    loss = (
        f", loss {found.loss_nats_per_token:.4f} nats/token" if found.loss_nats_per_token is not None else ""
    )
    end = f"; {found.stopped}" if found.stopped else ""
    return f"step {found.step:,}{of}{loss}, {duration(found.age_s)} ago{end}"
