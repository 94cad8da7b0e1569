"""What the scheduler knows of jobs, and what its words mean.

Place in the flow: under `status`, `logs` and `cancel`. Asks squeue, which knows jobs that wait, run or have just ended,
and sacct where the site keeps accounts. Invariant: a job that neither knows is returned as such, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cptron.launch.slurm import Refused, run_slurm

ACTIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "STOPPED",
)
"""States of jobs that have not come to their end."""
STATES = {
    "PENDING": "waits",
    "RUNNING": "runs",
    "CONFIGURING": "its nodes are being made ready",
    "COMPLETING": "is ending",
    "SUSPENDED": "is suspended",
    "STOPPED": "is stopped",
    "REQUEUED": "is being put back into the queue",
    "REQUEUE_HOLD": "is held after a requeue: `scontrol release` lets it go on",
    "COMPLETED": "has ended well",
    "FAILED": "has failed",
    "CANCELLED": "was cancelled",
    "TIMEOUT": "was killed at its time limit",
    "NODE_FAIL": "lost a node",
    "OUT_OF_MEMORY": "ran out of host memory",
    "PREEMPTED": "was preempted",
    "BOOT_FAIL": "got a node that did not boot",
    "DEADLINE": "could not be started before its deadline",
    "UNKNOWN": "is not known to the scheduler any more",
    "NOT ASKED": "the scheduler cannot be asked from here",
}
"""Word of SLURM's -> what it means."""
REASONS = {
    "Priority": "others come first",
    "Resources": "for nodes to become free",
    "Dependency": "for an earlier job to end",
    "DependencyNeverSatisfied": "in vain: the job it waits for did not end as it had to",
    "BeginTime": "for its begin time, as a job does shortly after a requeue",
    "JobHeldUser": "because it is held: `scontrol release` lets it go",
    "JobHeldAdmin": "because an administrator holds it",
    "PartitionTimeLimit": "in vain: the partition allows less time",
    "PartitionNodeLimit": "in vain: the partition has fewer nodes, or allows less",
    "PartitionDown": "for its partition to come up",
    "ReqNodeNotAvail": "for a node that is down, drained or reserved",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "for nodes that are down, drained or reserved"
    ),
    "AssocGrpGRES": "because the account's GPUs are all in use",
    "AssocMaxJobsLimit": "because the account has its largest number of jobs",
    "QOSMaxJobsPerUserLimit": "because the user has the largest number of jobs of this QOS",
    "QOSMaxGRESPerUser": "because the user has the most GPUs of this QOS",
    "QOSGrpGRES": "because the GPUs of this QOS are all in use",
    "None": "to be looked at by the scheduler",
}
"""Why a job waits, in words; others are shown as SLURM says them."""

_WIDTH = 200
_COLUMNS = (
    "JobArrayID",
    "State",
    "Reason",
    "TimeUsed",
    "TimeLeft",
    "RestartCnt",
    "NodeList",
    "exit_code",
    "StartTime",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """One job, or task of an array."""

    job_id: str
    """Of an array's task with its number, 12_3; of tasks that wait, 12_[4-7]."""
    state: str = "UNKNOWN"
    reason: str = ""
    used: str = ""
    left: str = ""
    restarts: int = 0
    nodes: str = ""
    exit_code: int | None = None
    """Of a job that has ended, where it is known."""
    start: str = ""
    """When it began, or is expected to."""

    @property
    def is_active(self) -> bool:
        """Whether it may still do something."""
        return self.state in ACTIVE


def states_of(job_ids: Sequence[str]) -> list[JobState]:
    """What is known of each job, in their order; several of an array."""
    found = _from_squeue(job_ids)
    gone = [job_id for job_id in job_ids if not any(_is_of(state, job_id) for state in found)]
    found += _from_sacct(gone) if gone else []
    states: list[JobState] = []
    for job_id in job_ids:
        states += [state for state in found if _is_of(state, job_id)] or [JobState(job_id=job_id)]
    return states


def _is_of(state: JobState, job_id: str) -> bool:
    return state.job_id == job_id or state.job_id.startswith(f"{job_id}_")


def _from_squeue(job_ids: Sequence[str]) -> list[JobState]:
    format_ = ",".join(f"{name}:{_WIDTH}" for name in _COLUMNS)
    arguments = ["--noheader", "--states=all", f"--Format={format_}"]
    try:
        text = run_slurm("squeue", [*arguments, f"--jobs={','.join(job_ids)}"])
    except Refused as refused:
        if "Invalid job id" not in refused.said:
            raise
        return []
    return [_from_columns(line) for line in text.splitlines() if line.strip()]


def _from_columns(line: str) -> JobState:
    cells = [line[start : start + _WIDTH].strip() for start in range(0, _WIDTH * len(_COLUMNS), _WIDTH)]
    of = dict(zip(_COLUMNS, cells, strict=True))
    is_over = of["State"] not in ACTIVE
    return JobState(
        job_id=of["JobArrayID"],
        state=of["State"],
        reason=of["Reason"],
        used=of["TimeUsed"],
        left=of["TimeLeft"],
        restarts=int(of["RestartCnt"]) if of["RestartCnt"].isdecimal() else 0,
        nodes=of["NodeList"],
        exit_code=_exit_code(of["exit_code"]) if is_over else None,
        start=of["StartTime"],
    )


def _exit_code(text: str) -> int | None:
    """Of a wait status as squeue prints it."""
    if not text.isdecimal():
        return None
    status = int(text)
    return status >> 8 if status > 255 else status


def _from_sacct(job_ids: Sequence[str]) -> list[JobState]:
    """Jobs that have left the queue; none where the site keeps no accounts."""
    arguments = [
        "--noheader",
        "--parsable2",
        "--allocations",
        "--format=JobID,State,Elapsed,NodeList,ExitCode,Start",
    ]
    try:
        text = run_slurm("sacct", [*arguments, f"--jobs={','.join(job_ids)}"])
    except Refused:
        return []
    return [_from_account(line.split("|")) for line in text.splitlines() if line.count("|") == 5]


def _from_account(cells: list[str]) -> JobState:
    job_id, state, used, nodes, exit_code, start = cells
    code = exit_code.partition(":")[0]
    return JobState(
        job_id=job_id,
        state=state.split()[0],  # "CANCELLED by 1000"
        used=used,
        nodes=nodes,
        exit_code=int(code) if code.isdecimal() else None,
        start=start,
    )
