"""Checksums add up over any cut, and see what a plain sum would not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.checkpoint.checksum import MODULUS, as_text, checksum, differing, fingerprint, torch_checksum

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random_matrix(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_definition(matrix: torch.Tensor, first_row: int, first_column: int) -> int:
    """In Python's own integers."""

    def mixed(index: int) -> int:
        z = (index * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % MODULUS
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % MODULUS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % MODULUS
        return z ^ (z >> 31)

    bits = (
        matrix.numpy().view(np.uint32)
        if matrix.element_size() == 4
        else matrix.view(torch.int16).numpy().view("u2")
    )
    total = 0
    for i, row in enumerate(bits.tolist()):
        row_sum = sum(value * (mixed(2 * (first_column + j) + 1) >> 32 | 1) for j, value in enumerate(row))
        total += row_sum * (mixed(2 * (first_row + i)) | 1)
    return total % MODULUS


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.integers(0, 2**40),
    st.integers(0, 2**33),
)
def test_kernel_and_torch_equal_the_definition(
    rows: int, columns: int, dtype: torch.dtype, first_row: int, first_column: int
) -> None:
    """For places far into a tensor too."""
    matrix = random_matrix(rows, columns, dtype)
    expected = by_definition(matrix, first_row, first_column)
    assert checksum(matrix, first_row, first_column) == expected
    assert torch_checksum(matrix, first_row, first_column) == expected


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.data(), st.sampled_from(DTYPES))
def test_parts_add_up(rows: int, columns: int, data: st.DataObject, dtype: torch.dtype) -> None:
    """Cut once by rows and once by columns, anywhere."""
    matrix = random_matrix(rows, columns, dtype)
    row, column = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    total = 0
    for part, start_row in ((matrix[:row], 0), (matrix[row:], row)):
        for block, start_column in ((part[:, :column], 0), (part[:, column:], column)):
            if block.numel():
                total += checksum(block, start_row, start_column)
    assert total % MODULUS == checksum(matrix)


def test_a_vector_is_a_column() -> None:
    """So that biases cut over tensor ranks add up."""
    vector = torch.randn(10)
    assert (checksum(vector[:4]) + checksum(vector[4:], 4)) % MODULUS == checksum(vector)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_and_every_place_counts(dtype: torch.dtype) -> None:
    """One flipped bit anywhere, two rows or columns exchanged, a zero that becomes negative."""
    matrix = random_matrix(6, 5, dtype)
    whole = checksum(matrix)
    bits = matrix.view(torch.int32 if dtype == torch.float32 else torch.int16)
    for element in range(bits.numel()):
        for bit in (0, 7, 15):
            changed = bits.clone()
            changed.view(-1)[element] ^= -(2**15) if bit == 15 and dtype != torch.float32 else 1 << bit
            assert checksum(changed.view(dtype)) != whole
    assert checksum(matrix[[1, 0, 2, 3, 4, 5]]) != whole
    assert checksum(matrix[:, [1, 0, 2, 3, 4]]) != whole
    assert checksum(torch.zeros(2, 2, dtype=dtype)) != checksum(-torch.zeros(2, 2, dtype=dtype))


def test_names_of_what_differs() -> None:
    """Missing ones too; the fingerprint is that of all."""
    left, right = as_text({"a": 1, "b": 2, "c": 3}), as_text({"a": 1, "b": 4, "d": 3})
    assert differing(left, right) == ["b", "c", "d"]
    assert left["a"] == f"{1:016x}"
    assert fingerprint(left, "bf16") == fingerprint(dict(reversed(left.items())), "bf16")
    assert len({fingerprint(left, "bf16"), fingerprint(left, "fp32"), fingerprint(right, "bf16")}) == 3
