"""`cptron cancel RUN|JOBID`: jobs that wait are taken out of the queue, a run saves and ends.

Place in the flow: after `submit`. Invariant: what is cancelled does not start again by itself: neither by a requeue nor
as the next link of a chain.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import LaunchError
from cptron.launch.queue import JobState, states_of
from cptron.launch.record import JobRecord, jobs_of, records_in
from cptron.launch.slurm import Refused, run_slurm


def main(argv: Sequence[str]) -> int:
    """Run `cptron cancel`."""
    parser = argparse.ArgumentParser(
        prog="cptron cancel", description="End submitted jobs; training saves first."
    )
    parser.add_argument(
        "target", metavar="RUN|JOBID", help="a run's or folder's jobs, or one job with its chain"
    )
    parser.add_argument("--now", action="store_true", help="do not wait for a save")
    args = parser.parse_args(argv)
    records = _with_chain(jobs_of(args.target))
    verbs = {record.job_id: record.verb for record in records}
    wanted = [args.target] if "_" in args.target and not Path(args.target).is_dir() else list(verbs)
    states = [state for state in states_of(wanted) if state.is_active]
    if not states:
        raise LaunchError(f"{args.target} has no job that waits or runs; see `cptron status {args.target}`")
    waiting = [state for state in states if state.state == "PENDING"]
    for state in [*waiting, *(state for state in states if state not in waiting)]:  # or the next would start
        saves = verbs[state.job_id.partition("_")[0]] == "train" and state.state == "RUNNING" and not args.now
        print(f"job {state.job_id}: {_saved(state) if saves else _ended(state)}", flush=True)
    return 0


def _with_chain(records: list[JobRecord]) -> list[JobRecord]:
    """All links of the chains that these jobs belong to."""
    chains = {(record.jobs, record.chain) for record in records if record.chain}
    found = {record.job_id: record for record in records}
    for jobs, chain in chains:
        found |= {
            other.job_id: other for other in records_in(Path(jobs) / "jobs.jsonl") if other.chain == chain
        }
    return list(found.values())


def _ended(state: JobState) -> str:
    try:
        run_slurm("scancel", [state.job_id])
    except Refused as refused:
        return f"not cancelled: {refused.said}"
    return "cancelled"


def _saved(state: JobState) -> str:
    """The script passes the signal on to the ranks, which save; its own requeue is then refused."""
    try:
        run_slurm("scontrol", ["update", f"JobId={state.job_id}", "Requeue=0"])
        run_slurm("scancel", ["--batch", "--signal=USR1", state.job_id])
    except Refused as refused:
        return f"not cancelled: {refused.said}; `cptron cancel --now` ends it without a save"
    return "asked to save and end; `cptron status` shows when it has"
