"""A curation as a chain of SLURM jobs: for each stage an array of parts, then one job that finishes the stage.

Place in the flow: `cptron curate --executor slurm` submits and returns; the jobs run `cptron curate` with `--part` and
`--finish`. Invariant: a job begins only when all that it needs ended well; submitting again goes on with what is
missing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import LaunchError


def submit(arguments: Sequence[str], num_stages: int, parts: int, template: Path) -> list[str]:
    """Submit the jobs of all stages; returns their ids, in order. `arguments` are those of `cptron curate` that say
    what to curate. Raises LaunchError where SLURM refuses."""
    if not template.is_file():
        raise LaunchError(
            f"{template} does not exist, must be the template of the jobs; name it with --sbatch"
        )
    jobs: list[str] = []
    for stage in range(num_stages):
        for options, more in (([f"--array=0-{parts - 1}"], ["--stage"]), ([], ["--finish"])):
            after = [f"--dependency=afterok:{jobs[-1]}"] if jobs else []
            words = ["sbatch", "--parsable", *options, *after, str(template), *arguments, *more, str(stage)]
            jobs.append(_sbatch(words))
    return jobs


def _sbatch(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LaunchError(
            f"{words[0]} cannot be run ({error.strerror}); submit on a node of a SLURM cluster"
        ) from None
    job = done.stdout.strip().split(";")[0]
    if done.returncode or not job.isdecimal():
        raise LaunchError(
            f"{' '.join(words)} failed ({done.stderr.strip() or done.stdout.strip()}); correct it"
        )
    return job
