"""The cluster itself: two of them do not meet, and nothing is left of one whose user was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import Cluster, running_cluster

pytestmark = pytest.mark.more
KILLED = """
import os, signal, slurm_cluster
with slurm_cluster.running_cluster() as cluster:
    cluster.run("sbatch", "-N2", "--output=/dev/null", "--wrap", "srun sleep 1000")
    while len([process for process in cluster.processes() if process.name() == "sleep"]) < 2:
        pass
    print(cluster.directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_two_clusters(cluster: Cluster) -> None:
    """Each has its own jobs and nodes."""
    with running_cluster() as other:
        job = other.run("sbatch", "--parsable", "--hold", "--wrap", "true", "--job-name=of_the_other").strip()
        assert "of_the_other" in other.run("scontrol", "show", "job", job)
        assert "of_the_other" not in cluster.run("squeue", "--noheader", "--format=%j")
        directory = other.directory
    assert not directory.exists()
    assert cluster.run("sinfo", "-h", "-o", "%D").strip() == "2"


def test_nothing_is_left(cluster: Cluster) -> None:
    """Of a cluster with a running job, whose user dies by SIGKILL."""
    folder = str(Path(slurm_cluster.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=folder, capture_output=True, text=True, timeout=120
    )
    dead = Cluster(Path(done.stdout.strip()))
    end_s = time.monotonic() + 60
    while (dead.directory.exists() or dead.processes()) and time.monotonic() < end_s:
        time.sleep(0.2)
    assert not dead.directory.exists()
    assert dead.processes() == []
