"""`cptron submit`: a recipe or another cptron command becomes a job of SLURM's.

Place in the flow: between a recipe and a cluster. Imports no torch. Invariant: what the trainer would refuse at its
start is refused here; a job that was submitted has its id printed before anything else can fail.
"""

from __future__ import annotations

import argparse
import datetime
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from cptron.durable import make_directory, replace_text
from cptron.errors import ConfigError
from cptron.launch.arguments import Asked, asked
from cptron.launch.job import Job, made_job, merge_commands
from cptron.launch.record import JobRecord, add_record
from cptron.launch.site import read_site
from cptron.launch.slurm import sbatch


def main(argv: Sequence[str]) -> int:
    """Run `cptron submit`."""
    request = asked(argv)
    args = request.args
    site = read_site(args.site)
    chain = f"chain-{secrets.token_hex(4)}" if (args.chain or 1) > 1 else ""
    jobs = [made_job(request, site, chain)]
    if args.merge:
        jobs += [made_job(of_merge(request, command), site) for command in merge_commands(request.command)]
    for job in jobs:
        for note in job.notes:
            print(f"note: {note}")
        print(job.script if args.dry_run else "\n".join(job.summary))
    if args.dry_run:
        print(f"note: nothing is written or submitted; the log would be {jobs[0].log}")
        return 0
    after = [f"afterok:{args.after}"] if args.after else []
    job_id = _submit_links(jobs[0], args.chain or 1, chain, after)
    for job in jobs[1:]:
        submit_job(job, 1, 1, "", [f"afterok:{job_id}"])
    target = jobs[0].run_dir or jobs[0].jobs
    here = Path.cwd()
    shown = shlex.quote(str(target.relative_to(here) if target.is_relative_to(here) else target))
    print(f"cptron status {shown}\ncptron logs {shown} --follow\ncptron cancel {shown}")
    return 0


def of_merge(request: Asked, command: tuple[str, ...]) -> Asked:
    """The job that joins the parts: in the same place and environment, but of the merge template's size."""
    args = argparse.Namespace(**vars(request.args))
    args.array = args.cpus_per_task = args.template = args.name = None
    return Asked(command, args)


def _submit_links(job: Job, links: int, chain: str, after: list[str]) -> str:
    """Submit the job, or all links of its chain; returns the id of the last.

    A link waits for the one before to end with another code than 0 (afternotok), so a run that is finished ends the
    chain by itself: the scheduler drops jobs whose dependency can never hold. Of a run that failed, the template drops
    the links that wait."""
    job_id = ""
    for link in range(1, links + 1):
        job_id = submit_job(job, link, links, chain, [*after, *([f"afternotok:{job_id}"] if job_id else [])])
    return job_id


def submit_job(job: Job, link: int, links: int, chain: str, dependencies: list[str]) -> str:
    """Submit one job that is dropped by the scheduler where its dependencies cannot hold any more; returns its id.
    Raises `LaunchError` where SLURM refuses, `ConfigError` where its files cannot be written."""
    script = _written(job)
    options = [f"--comment={chain}"] if chain else []
    if dependencies:
        options += [f"--dependency={','.join(dependencies)}", "--kill-on-invalid-dep=yes"]
    job_id = sbatch(str(script), options, in_script=job.options)
    record = JobRecord(
        job_id=job_id,
        verb=job.verb,
        name=job.name,
        submitted_at=_now().isoformat(timespec="seconds"),
        nodes=job.nodes,
        ranks=job.ranks,
        array=job.array,
        log=job.log,
        script=str(script),
        jobs=str(job.jobs),
        run_dir=str(job.run_dir or ""),
        chain=chain,
        link=link,
        links=links,
    )
    which = f" (link {link} of {links})" if links > 1 else ""
    print(f"submitted job {job_id}{which}: {job.name}\nlog {record.log_of('TASK')}", flush=True)
    try:
        add_record(record)
    except OSError as error:
        raise ConfigError(
            f"job {job_id} is submitted, but cannot be written down ({error}); make room or set CPTRON_JOBS, and use "
            "squeue and scancel for this one"
        ) from None
    return job_id


def _written(job: Job) -> Path:
    """The script on disk, under a name of its own."""
    try:
        make_directory(job.jobs)
        stamp = _now().strftime("%Y%m%d-%H%M%S")
        path = job.jobs / f"{job.name}-{stamp}-{secrets.token_hex(2)}.sbatch"
        replace_text(path, job.script)
    except OSError as error:
        raise ConfigError(
            f"{job.jobs} cannot be written ({error}); free space or choose another run.dir"
        ) from None
    return path


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
