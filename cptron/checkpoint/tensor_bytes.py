"""Tensors as bytes and back, without a copy where they are on the CPU.

Place in the flow: between torch and the files of a checkpoint. Invariant: the bytes are those of the elements, row by
row, in the machine's order, which is little-endian wherever this runs.
"""

from __future__ import annotations

import torch

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Types by their names in the index."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The index's name of a type of weights or optimizer state."""
    return _NAMES[dtype]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor; it is copied where it is not contiguous or not on the CPU."""
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data
