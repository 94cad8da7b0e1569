"""The one place that decides device and backend.

Place in the flow: first thing a rank does. Invariant: CUDA goes with NCCL, the CPU with gloo; everything
after this module is the same megatron-core code on both (`megatron_ready` sees to it that it can be
imported).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from cptron.errors import LaunchError


@dataclass(frozen=True, slots=True)
class Device:
    """Where this rank computes and how it talks."""

    kind: Literal["cuda", "cpu"]
    backend: Literal["nccl", "gloo"]
    torch_device: torch.device

    def host_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Zeros in host memory; page-locked beside a GPU, so that copies to it run on while others compute."""
        if self.kind == "cpu":
            return np.zeros(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        pinned: npt.NDArray[Any] = torch.zeros(shape, dtype=kind, pin_memory=True).numpy()
        return pinned


def device_name(device: Device) -> str:
    """What the driver calls the GPU; `cpu` without one."""
    return torch.cuda.get_device_name(device.torch_device) if device.kind == "cuda" else "cpu"


def select_device(wanted: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> Device:
    """Pick the device of this rank.

    Raises `LaunchError` when CUDA is asked for but absent, when the CPU is asked for on a machine whose
    GPUs are visible, or when the machine has fewer GPUs than local ranks.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise LaunchError(
            "runtime.device=cuda, but torch sees no CUDA device; "
            "install a CUDA build of torch or use runtime.device=cpu"
        )
    if not has_cuda:
        return Device("cpu", "gloo", torch.device("cpu"))
    if wanted == "cpu":
        raise LaunchError(
            f"runtime.device=cpu, but {torch.cuda.device_count()} CUDA device(s) are visible; "
            "set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU of this machine"
        )
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} visible; "
            "start at most that many ranks a node"
        )
    torch.cuda.set_device(local_rank)
    return Device("cuda", "nccl", torch.device("cuda", local_rank))
