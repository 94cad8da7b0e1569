"""Imported once by the process that ranks are forked from: torch, megatron-core and the trainer, seconds each.

Place in the flow: named to the fork server by `ranks`; never imported anywhere else. Invariant: when the import is
over the process has one thread, so that a fork of it is a whole process.
"""

from __future__ import annotations

import os

os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import importlib

from cptron.runtime.host_isa import leave_amx_alone

leave_amx_alone()

for _name in (
    "cli",
    "train.main",
    "train.loop",
    "train.setup",
    "runtime.dist",
    "runtime.session",
    "report.hooks",
):
    importlib.import_module(f"cptron.{_name}")

assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread: its forks would lack it"
