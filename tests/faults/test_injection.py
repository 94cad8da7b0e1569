"""The short form of `make faults`: every fault at least once, with a fixed seed; most of them in `make test-more`."""

from __future__ import annotations

import pytest
from faults.injection.catalogue import FAULTS
from faults.injection.ground import Ground
from faults.injection.trials import Fault, run_trials
from tiny_world import World

SEED = 1
SHORT = [fault for fault in FAULTS if fault.short]
QUICK = ("corrupt", "disk full")
"""Those that no other test in this folder brings about."""


@pytest.fixture(scope="session")
def ground(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Undisturbed runs are made once, and shared by all faults."""
    return Ground(world, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=fault.name.replace(" ", "-"),
            marks=() if fault.name in QUICK else pytest.mark.more,
        )
        for fault in SHORT
    ],
)
def test_fault_is_survived(fault: Fault, ground: Ground) -> None:
    """What is published is used, what is damaged is not, and the run ends as if nothing had been; a failure says how to
    repeat its trial."""
    count = run_trials(fault, ground, SEED, fault.short)
    assert count.failed == {}
    if count.impossible:
        pytest.skip(count.impossible)
