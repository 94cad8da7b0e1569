"""SLURM's own commands, started with a list of arguments, and what they say when they refuse.

Place in the flow: under `submit`, `status`, `logs` and `cancel`. Invariant: no shell; a command that is absent, refuses
or does not answer is one line with a remedy.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence

from cptron.errors import LaunchError, either

ANSWER_S = 120.0
"""How long a busy scheduler may take."""
VARIABLES = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE"}
"""Option of sbatch -> the end of its variable SBATCH_..., where that is another word."""
_PREFIX = re.compile(r"^\w+: (?:error|fatal): ")
_UNUSEFUL = re.compile(r"Batch job submission failed: ")


def run_slurm(program: str, arguments: Sequence[str], without: Iterable[str] = ()) -> str:
    """What `program` prints. `without` are names of variables that it must not see. Raises `LaunchError`."""
    dropped = set(without)
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=ANSWER_S,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise LaunchError(
            f"{program} is not on this machine: SLURM is not installed here; log in to a node of the cluster, or use "
            "`cptron submit --dry-run` to see the job"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(
            f"{program} did not answer ({error}); ask `sinfo` whether the scheduler is up"
        ) from None
    if done.returncode:
        raise Refused(program, complaint(done.stderr) or f"exit code {done.returncode}")
    return done.stdout


class Refused(LaunchError):
    """SLURM's command ran and said no."""

    def __init__(self, program: str, said: str) -> None:
        super().__init__(f"{program} refused: {said}")
        self.said = said


def complaint(stderr: str) -> str:
    """What SLURM's commands print on an error, on one line, each thing once."""
    lines = [_PREFIX.sub("", line.strip()) for line in stderr.splitlines() if line.strip()]
    lines = [_UNUSEFUL.sub("", line) for line in lines]
    return "; ".join(dict.fromkeys(lines))


def sbatch(script: str, options: Sequence[str], *, in_script: Iterable[str]) -> str:
    """Submit a script; returns the job's id. `in_script` are its options, which variables of the environment would
    override. Raises `LaunchError` with sbatch's own words."""
    without = [f"SBATCH_{VARIABLES.get(name) or name.upper().replace('-', '_')}" for name in in_script]
    try:
        said = run_slurm("sbatch", ["--parsable", *options, script], without)
    except Refused as refused:
        raise LaunchError(f"sbatch refused the job: {refused.said}{_remedy(refused.said)}") from None
    job_id = said.strip().rpartition("\n")[2].partition(";")[0]
    if not job_id.isdecimal():
        raise LaunchError(f"sbatch printed {said!r:.200}, which is no job id; see `squeue --me` for the job")
    return job_id


def _remedy(said: str) -> str:
    """What there is instead of what was not found."""
    lowered = said.lower()
    if "partition" in lowered:
        known = _partitions()
        return f"; partitions here: {either(known)}" if known else "; ask `sinfo` for the partitions"
    if "account" in lowered or "qos" in lowered:
        return "; ask `sacctmgr show associations user=$USER` for yours, and give --account and --qos"
    if "node configuration" in lowered or "node count" in lowered:
        return "; give --nodes, --gpus-per-node and --cpus-per-task that nodes of the partition have (`sinfo -N -l`)"
    if "time limit" in lowered:
        return "; give a shorter --time, with --chain N for a longer run (`sinfo` shows the limits)"
    return ""


def _partitions() -> list[str]:
    try:
        return sorted(set(run_slurm("sinfo", ["--noheader", "--format=%R"]).split()))
    except LaunchError:
        return []
