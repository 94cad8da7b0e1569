"""One real cluster for all tests of a session, and runs without SLURM to compare with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, missing, running_cluster

from cptron.testing import stop_ranks

REQUIRED = "TEST_SLURM_REQUIRED"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes. The tests are skipped where SLURM is not installed; where it does not start, too,
    but not by `make test-slurm`."""
    if absent := missing():
        pytest.skip(
            f"SLURM is not installed ({', '.join(absent)} not found): `make slurm` installs it on Debian"
        )
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(running_cluster())
        except RuntimeError:
            if REQUIRED in os.environ:
                raise
            pytest.skip(
                "SLURM is installed and does not start on this machine: `make test-slurm` fails and says why"
            )
        yield started


@pytest.fixture(autouse=True)
def end_of_jobs(cluster: Cluster) -> Iterator[None]:
    """A test begins on idle nodes, also after one that failed with a job in the queue."""
    cluster.wait_idle()
    yield
    cluster.end_jobs()


@pytest.fixture(scope="session", autouse=True)
def end_of_ranks() -> Iterator[None]:
    """Warm ranks end with the session."""
    yield
    stop_ranks()
