"""Markers: a test's folder says what kind it is, and GPU tests skip themselves where there is no GPU.

Fixtures that the end-to-end and the fault tests share come from `tiny_world`.
"""

from __future__ import annotations

import random
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from forgetting_world import forgetting_world
from hypothesis import settings
from tiny_world import whole_runs, world

from cptron.runtime.host_isa import leave_amx_alone
from cptron.tokens import checkpointer

leave_amx_alone()  # before the first matrix product of this process

__all__ = ["forgetting_world", "whole_runs", "world"]

TESTS_DIR = Path(__file__).parent
MARKED_FOLDERS = ("ranks", "e2e", "faults", "fuzz", "slurm")

# A loaded machine is no reason to fail, and one run finds what another does; `make test-more` draws anew.
settings.register_profile("cptron", deadline=None, derandomize=True)
settings.register_profile("anew", deadline=None)
settings.load_profile("cptron")

# What a test leaves on the disk does not depend on whether the machine stood still for the time of a checkpoint.
checkpointer._INTERVAL_S = 3600.0

# A shell without a terminal starts its background commands with SIGINT ignored, and those of a test would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """A test draws the same random numbers, whatever has run before it in this process."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)


def pytest_report_header() -> str:
    """Name the versions under test: the same tests run under several of megatron-core."""
    return f"megatron-core {version('megatron-core')}, torch {version('torch')}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder; skip those marked `gpu` without a CUDA device."""
    for item in items:
        folder = item.path.relative_to(TESTS_DIR).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
