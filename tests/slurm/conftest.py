"""One real cluster for all tests of a session, and runs without SLURM to compare with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, missing, running_cluster

from cptron.testing import stop_ranks


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes; the tests are skipped where SLURM is not installed."""
    if absent := missing():
        pytest.skip(
            f"SLURM is not installed ({', '.join(absent)} not found): `make slurm` installs it on Debian"
        )
    with running_cluster() as started:
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
