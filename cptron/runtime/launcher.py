"""Which rank this process is, as its launcher set it.

Place in the flow: first thing `cptron train` asks. Understands torchrun's and SLURM's environment. Imports
no torch. Invariant: reads the environment only, never changes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, NUM_PORTS = 20000, 12000
"""Of rendezvous under SLURM; above what services use, below what the kernel gives out."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where this process stands among all."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: str

    @property
    def is_main(self) -> bool:
        """The one rank that writes files and talks."""
        return self.rank == 0


def launched_ranks(environ: dict[str, str] | None = None) -> Ranks | None:
    """Ranks as the launcher set them, or None when this process was started by hand.

    torchrun sets RANK and WORLD_SIZE; `srun` sets SLURM_PROCID and SLURM_NTASKS (a batch script's own shell
    also has SLURM_NTASKS, but is no srun task: it lacks SLURM_STEP_ID).
    """
    env = dict(os.environ) if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world_size = int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_RANK", env["RANK"]))
        return Ranks(
            int(env["RANK"]), world_size, local, int(env.get("LOCAL_WORLD_SIZE", world_size)), "torchrun"
        )
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        tasks_here = env.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")[0].split("(")[0]
        return Ranks(
            int(env["SLURM_PROCID"]),
            int(env["SLURM_STEP_NUM_TASKS"]),
            int(env["SLURM_LOCALID"]),
            int(tasks_here),
            "slurm",
        )
    return None


def slurm_rendezvous(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Host and port where the ranks of one `srun` meet: the first of its nodes, where rank 0 is unless tasks are
    distributed otherwise, and a port that follows from job and step, so that two do not meet. None where SLURM does
    not say."""
    nodes, job = environ.get("SLURM_STEP_NODELIST", ""), environ.get("SLURM_JOB_ID", "")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None or not job.isdecimal():
        return None
    step = environ.get("SLURM_STEP_ID", "")
    number = int(job) + 977 * (int(step) if step.isdecimal() else 0)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0]), FIRST_PORT + number % NUM_PORTS
