"""Checksums of weights that do not depend on how the weights are cut.

Place in the flow: import and every save record one for each parameter; every load for training and every export
compares them. Invariant: the checksums of the pieces of a tensor add up to that of the tensor, whatever the pieces.

The sum over all elements of bits * row factor * column factor modulo 2^64 (csrc/checksum.h): a bit that flips and
elements that change places change it. It finds accidents; it is no signature.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cptron.data.kernels import checksum as _of_matrix

MODULUS = 2**64
_BITS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}
_ROWS_AT_ONCE = 1024


def checksum(tensor: torch.Tensor, first_row: int = 0, first_column: int = 0) -> int:
    """Checksum of a vector or matrix of 2 or 4 byte elements, whose first element is (first_row, first_column) of the
    whole one."""
    matrix_RC = tensor.detach().reshape(len(tensor), -1)
    of_torch, of_numpy = _BITS[matrix_RC.element_size()]
    if matrix_RC.is_cuda:
        return torch_checksum(matrix_RC, first_row, first_column)
    bits_RC = matrix_RC.contiguous().view(of_torch).numpy().view(of_numpy)
    return int(_of_matrix(bits_RC, first_row, first_column))


def torch_checksum(matrix_RC: torch.Tensor, first_row: int, first_column: int) -> int:
    """The same in torch's integers, which wrap: for GPUs, and as the kernel's twin."""
    of_torch, _ = _BITS[matrix_RC.element_size()]
    mask = (1 << 8 * matrix_RC.element_size()) - 1
    rows, columns = matrix_RC.shape
    device = matrix_RC.device
    column_C = _factors(2 * first_column + 1, columns, device) >> 32 & 0xFFFFFFFF | 1
    row_R = _factors(2 * first_row, rows, device) | 1
    total = 0
    for start in range(0, rows, _ROWS_AT_ONCE):
        part_RC = matrix_RC[start : start + _ROWS_AT_ONCE].contiguous().view(of_torch).long() & mask
        sums_R = (part_RC * column_C).sum(1)
        total += int((sums_R * row_R[start : start + _ROWS_AT_ONCE]).sum())
    return total % MODULUS


def _factors(first: int, count: int, device: torch.device) -> torch.Tensor:
    """splitmix64 of first, first + 2, ..., as int64."""
    z = torch.arange(first, first + 2 * count, 2, dtype=torch.int64, device=device)
    z = z * _signed(0x9E3779B97F4A7C15) + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, places: int) -> torch.Tensor:
    """Right, filling with zeros, as unsigned numbers are."""
    return z >> places & (1 << 64 - places) - 1


def _signed(value: int) -> int:
    return value - MODULUS if value >= MODULUS // 2 else value


Checksums = dict[str, str]
"""Checksum of each parameter by its stored name, in hexadecimal."""


def as_text(sums: Mapping[str, int]) -> Checksums:
    """The form in which checksums are recorded."""
    return {name: f"{value % MODULUS:016x}" for name, value in sums.items()}


def add_up(parts: Sequence[Mapping[str, int]]) -> Checksums:
    """Checksums of whole parameters from those of their parts."""
    total: dict[str, int] = {}
    for sums in parts:
        for name, value in sums.items():
            total[name] = total.get(name, 0) + value
    return as_text(total)


def fingerprint(checksums: Checksums, precision: str) -> str:
    """One name for all weights: sha256 over the checksums of all parameters and their precision."""
    content = [precision, sorted(checksums.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def differing(found: Checksums, expected: Checksums) -> list[str]:
    """Parameters whose checksums differ, or that only one side has."""
    return sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
