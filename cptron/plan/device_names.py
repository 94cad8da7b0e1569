"""Which GPU of the table a device is, by the name that its driver gives it.

Place in the flow: whoever shows a utilisation of a real GPU, or compares a real link with what it could do. Invariant:
a device that is not surely one of the table is none: no peak is guessed.
"""

from __future__ import annotations

from cptron.plan.gpus import GPUS, Gpu

_WORDS = (
    ("h100-pcie", ("H100", "PCIE")),
    ("h100", ("H100", "HBM3")),
    ("h200", ("H200",)),
    ("a100-40gb", ("A100", "40GB")),
    ("a100", ("A100", "80GB")),
    ("b200", ("B200",)),
    ("l40s", ("L40S",)),
    ("rtx4090", ("RTX", "4090")),
)
"""Name in the table -> words that are all in the driver's name; the first that fits."""
_OTHERS = ("NVL", "MIG", "LAPTOP", "GB200", "GH200", "4090 D", "RTX 4090D")
"""Parts of names of other devices: with other peaks, or only a slice of one."""


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU for `NVIDIA H100 80GB HBM3`; None where the name is not known, as a CPU's."""
    name = device_name.upper()
    if any(other in name for other in _OTHERS):
        return None
    return next((GPUS[key] for key, words in _WORDS if all(word in name for word in words)), None)
