"""A curation as a chain of SLURM jobs: for each stage an array of parts, then one job that finishes the stage.

Place in the flow: `cptron curate --executor slurm` submits and returns; the jobs run `cptron curate` with `--part` and
`--finish`. Invariant: a job begins only when all that it needs ended well, and is dropped when it cannot; all of the
jobs are submitted, or none; those of one output are never in the queue twice.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from cptron.corpus.run import LOCK, locked
from cptron.corpus.work import Work
from cptron.errors import LaunchError
from cptron.launch.arguments import Asked
from cptron.launch.job import Job, made_job
from cptron.launch.site import read_site
from cptron.launch.slurm import Refused, run_slurm
from cptron.launch.submit import submit_job

_NOT_ASKED = dict.fromkeys(("nodes", "ranks_per_node", "array", "save_before", "retries"))
"""Options of `cptron submit` that such jobs do not have."""


def require_no_jobs(output: Path) -> None:
    """Raise LaunchError while jobs that make `output` are in the queue: two of them would write the same files."""
    said = run_slurm("squeue", ["--noheader", "--format=%F %k"])
    name = _chain(output)
    ids = sorted({line.split()[0] for line in said.splitlines() if line.split()[1:] == [name]}, key=int)
    if ids:
        raise LaunchError(
            f"{output} is made by {len(ids)} jobs that wait or run, such as {ids[0]}; wait for them, or "
            f"`cptron cancel {ids[0]}` ends them all"
        )


def submit(args: argparse.Namespace, work: Work) -> list[str]:
    """Submit the jobs of all stages; returns their ids, in order. Raises LaunchError where SLURM refuses one."""
    output = work.directory.parent
    with locked(work.directory / LOCK, shared=False):
        pass  # nobody is at work on it now
    jobs = [job for stage in range(len(work.stages)) for job in _of_stage(args, stage)]
    for job in jobs if args.dry_run else ():
        print(job.script)
    if args.dry_run:
        print(f"note: nothing is submitted; the first log would be {jobs[0].log}")
        return []
    print("\n".join(jobs[0].summary))
    ids: list[str] = []
    with contextlib.ExitStack() as undo:
        undo.callback(_take_back, ids)
        for link, job in enumerate(jobs, start=1):
            after = ids[-1] if ids else args.after
            dependencies = [f"afterok:{after}"] if after else []
            ids.append(submit_job(job, link, len(jobs), _chain(output), dependencies))
        undo.pop_all()
    print(f"job {ids[-1]} writes {output}/manifest.json\ncptron status {ids[0]}\ncptron cancel {ids[0]}")
    return ids


def _of_stage(args: argparse.Namespace, stage: int) -> list[Job]:
    words = ["curate", str(args.config), *args.overrides]
    site = read_site(args.site)
    name = args.name or "cptron-curate"
    found = []
    array_words = ("--part", "slurm")
    for what, array, more in (("stage", f"0-{args.parts - 1}", array_words), ("finish", "", ())):
        command = (*words, f"--{what}", str(stage), *more)
        options = {**vars(args), **_NOT_ASKED, "array": array, "name": f"{name}-{what}-{stage}"}
        found.append(made_job(Asked(command, argparse.Namespace(**options)), site))
    return found


def _chain(output: Path) -> str:
    """What the jobs of one output have in common; the scheduler shows it as their comment."""
    return f"curate-{hashlib.sha256(bytes(output.resolve())).hexdigest()[:12]}"


def _take_back(ids: Sequence[str]) -> None:
    """Of jobs that are not all there, leave none; the first ones last, or the next would start."""
    for job_id in reversed(ids):
        try:
            run_slurm("scancel", [job_id])
        except Refused as refused:
            print(f"job {job_id}: not cancelled: {refused.said}")
        else:
            print(f"job {job_id}: cancelled, since the next one was not accepted")
