"""What each rank says of its machine: versions, limits, memory, GPU.

Place in the flow: gathered from all ranks first by `cptron doctor --cluster`. Invariant: looks, changes nothing, and
leaves out what this machine does not tell.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cptron.runtime.device import Device, device_name
from cptron.runtime.launcher import Ranks
from cptron.versions import installed_versions

SHARED_MEMORY = Path("/dev/shm")
SMI_S = 20.0
_SMI = {
    "uuid": "uuid",
    "driver": "driver_version",
    "ecc": "ecc.errors.uncorrected.volatile.total",
    "hot": "clocks_throttle_reasons.hw_thermal_slowdown",
    "braked": "clocks_throttle_reasons.hw_slowdown",
    "temperature_c": "temperature.gpu",
}
"""Our name -> field of nvidia-smi."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """One rank and its machine."""

    rank: int
    host: str
    local_rank: int
    versions: dict[str, str]
    """Of everything that has to be the same everywhere."""
    open_files: int
    """Soft limit."""
    shm_gib: float | None
    memory_gib: float
    """Of the machine, in all."""
    device: str
    """What the driver calls the GPU; `cpu` without one."""
    gpu: dict[str, Any] = field(default_factory=dict)
    """`free_gib`, `total_gib`, and what nvidia-smi tells of it."""

    @property
    def name(self) -> str:
        """For people: `rank 3 (node2)`."""
        return f"rank {self.rank} ({self.host})"


def facts_of(ranks: Ranks, device: Device) -> Facts:
    """Of this rank."""
    gpu = _gpu_facts(device) if device.kind == "cuda" else {}
    versions = installed_versions()
    if device.kind == "cuda":
        versions |= {"nccl": _nccl_version(), "driver": str(gpu.get("driver", "not told"))}
    return Facts(
        rank=ranks.rank,
        host=socket.gethostname(),
        local_rank=ranks.local_rank,
        versions=versions,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        shm_gib=shutil.disk_usage(SHARED_MEMORY).total / 2**30 if SHARED_MEMORY.is_dir() else None,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        device=device_name(device),
        gpu=gpu,
    )


def _nccl_version() -> str:
    import torch

    return ".".join(map(str, torch.cuda.nccl.version()))


def _gpu_facts(device: Device) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(device.torch_device)
    uuid = str(getattr(torch.cuda.get_device_properties(device.torch_device), "uuid", ""))
    return {"free_gib": free / 2**30, "total_gib": total / 2**30, "uuid": uuid, **_smi(uuid)}


def _smi(uuid: str) -> dict[str, str]:
    """What nvidia-smi tells of one GPU; nothing where it is not there or does not know it."""
    program = shutil.which("nvidia-smi")
    if program is None or not uuid:
        return {}
    words = [
        program,
        f"--query-gpu={','.join(_SMI.values())}",
        "--format=csv,noheader,nounits",
        f"--id=GPU-{uuid}",
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return read_smi(done.stdout) if done.returncode == 0 else {}


def read_smi(line: str) -> dict[str, str]:
    """Fields of a line of nvidia-smi; those it does not know are left out."""
    values = [value.strip() for value in line.strip().split(",")]
    if len(values) != len(_SMI):
        return {}
    unknown = ("[N/A]", "[Not Supported]", "N/A", "")
    return {name: value for name, value in zip(_SMI, values, strict=True) if value not in unknown}
