"""Keeps bf16 on the CPU from crashing where a virtual machine announces AMX but does not let it run.

Place in the flow: the command line and every rank call it first: oneDNN reads its limit once, at the first
matrix product of a process. Invariant: an explicit ONEDNN_MAX_CPU_ISA in the environment is the user's word
and is left alone.
"""

from __future__ import annotations

import os
from pathlib import Path

LIMIT = "ONEDNN_MAX_CPU_ISA"
BEST_WITHOUT_AMX = "AVX512_CORE_FP16"


def announces_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """The kernel lists the bf16 tile instructions."""
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()


def leave_amx_alone() -> bool:
    """Keep oneDNN off AMX unless the user said otherwise; returns whether that changed anything.

    Some hypervisors pass the AMX flag on and grant the permission, and then the first tile instruction ends
    the process with SIGILL; there is no way to try it that is both safe and cheap. With
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX it is used.
    """
    if LIMIT in os.environ or not announces_amx():
        return False
    os.environ[LIMIT] = BEST_WITHOUT_AMX
    return True
