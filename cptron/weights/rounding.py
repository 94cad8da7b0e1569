"""fp64 -> the type that is stored, rounded once.

Place in the flow: the last step of a merge. torch goes from fp64 to a 16-bit type by way of fp32: a value that fp32
rounds onto the middle between two 16-bit values is then rounded again, sometimes the wrong way. Invariant: the result
is the nearest value of the type, the even one where two are as near.
"""

from __future__ import annotations

import torch

_TAILS = {torch.bfloat16: (0xFFFF, 0x8000), torch.float16: (0x1FFF, 0x1000)}
"""Bits of an fp32 value that the type drops, and what they are in the middle between two of its values."""
_SMALLEST_NORMAL_FP16 = 2.0**-14
_SPACING_BELOW = 2.0**-24
"""Between fp16 values smaller than that."""


def round_once(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest values of `dtype` to those of an fp64 tensor."""
    rounded = exact.float()
    if dtype not in _TAILS:
        return rounded.to(dtype)
    dropped, middle = _TAILS[dtype]
    is_middle = (rounded.view(torch.int32) & dropped) == middle
    if dtype == torch.float16:
        small = rounded.abs() < _SMALLEST_NORMAL_FP16
        is_middle = torch.where(small, (rounded / _SPACING_BELOW).abs() % 1 == 0.5, is_middle)
    where = is_middle.nonzero(as_tuple=True)
    if len(where[0]):  # one in 65 536 of bf16 values
        value, true = rounded[where], exact[where]
        side = (true - value.double()).sign() * torch.inf  # nan where fp32 holds it exactly
        rounded[where] = torch.where(side.isnan(), value, torch.nextafter(value, side.float()))
    return rounded.to(dtype)
