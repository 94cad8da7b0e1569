"""FP8 tensors and their products: the formats of Micikevicius et al. 2022, "FP8 Formats for Deep Learning".

Place in the flow: below `linear_fp8`, which adds autograd and tensor parallelism; pure torch. A tensor is quantised
with a scale that takes its largest magnitude to the largest of the format (current scaling): one scale for all of it
(tensorwise) or one for each row along the contraction (rowwise). Invariant: devices with and without FP8 matrix
products multiply the same quantised values; they differ in how sums are rounded, not in what is summed.

Shapes: M, N rows of the operands and of the product, K the contraction, R, C rows and columns of any matrix; scales
are `[]`, `[R, 1]` or `[1, C]`.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist

from cptron.config.check_fp8 import FP8_CAPABILITY
from cptron.config.schema import Fp8Config
from cptron.errors import ConfigError
from cptron.model.fused import fused

Format = Literal["e4m3", "e5m2"]

DTYPES: dict[Format, torch.dtype] = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""e4m3 holds NaN but no infinity and reaches 448; e5m2 has both and reaches 57344 (table 1 of the paper)."""

MAX_SCALE = 2.0**120
"""Keeps the inverse of the scale of a tensor of denormal numbers a normal number."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """A matrix `data_RC * inverse_scale`."""

    data_RC: torch.Tensor
    inverse_scale: torch.Tensor
    """fp32; `[]`, `[R, 1]` or `[1, C]`."""

    def turned(self) -> Scaled:
        """The transpose, with rows laid out one after the other."""
        bytes_CR = _turn(self.data_RC.view(torch.uint8))
        scale = self.inverse_scale
        return Scaled(bytes_CR.view(self.data_RC.dtype), scale.t().contiguous() if scale.dim() else scale)

    def dequantized(self) -> torch.Tensor:
        """The values in fp32."""
        return self.data_RC.float() * self.inverse_scale


def find_scale(
    x_RC: torch.Tensor, dtype: torch.dtype, dim: int | None = None, group: Any = None
) -> torch.Tensor:
    """What to multiply `x_RC` with before the cast to `dtype`: format maximum / largest magnitude, in fp32.

    `dim`: the axis a scale covers (0 gives `[1, C]`, 1 gives `[R, 1]`); None means both. `group`: ranks that hold the
    other parts along that axis; collective. All zero gives 1. A number that is not finite gives NaN, on every rank.
    """
    top = _largest_magnitude(x_RC, dim)
    if group is not None and group.size() > 1:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return _scale_from(top, torch.finfo(dtype).max)


def quantize(x_RC: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Scaled:
    """`x_RC` times `scale`, rounded to nearest even; beyond the format's largest number it saturates.

    Under a scale of NaN all becomes NaN: one infinite number is not hidden as a large one, and whoever looks for
    non-finite gradients finds it.
    """
    # compiled only where the hardware knows these formats: the compiler refuses them elsewhere
    cast = _cast if hardware_has_fp8() else inspect.unwrap(_cast)
    return Scaled(cast(x_RC, scale, dtype), scale.reciprocal())


def matmul(a: Scaled, b: Scaled, out_dtype: torch.dtype, *, fast_accumulation: bool = False) -> torch.Tensor:
    """`a_MK b_NK^T [M, N]`; scales are `[]`, or `[M, 1]` and `[N, 1]`. At most one operand is e5m2, and then `a`.

    `fast_accumulation` lets hardware sum in fewer bits than fp32: enough for outputs, not for gradients.
    """
    if a.data_RC.is_cuda and hardware_has_fp8():
        return scaled_product(a, b, out_dtype, fast_accumulation=fast_accumulation)
    sum_MN = a.data_RC.float() @ b.data_RC.float().t()
    return (sum_MN * a.inverse_scale * b.inverse_scale.t()).to(out_dtype)


def scaled_product(a: Scaled, b: Scaled, out_dtype: torch.dtype, *, fast_accumulation: bool) -> torch.Tensor:
    """`matmul` by torch's kernel. torch has it for CPUs too, where it tells whether it is asked for the right thing."""
    rowwise = a.inverse_scale.dim() > 0
    product_MN = torch._scaled_mm(
        a.data_RC,
        b.data_RC.t(),
        scale_a=a.inverse_scale,
        scale_b=b.inverse_scale.t(),
        # with scales for rows the kernels write bf16 only
        out_dtype=torch.bfloat16 if rowwise else out_dtype,
        use_fast_accum=fast_accumulation,
    )
    return product_MN.to(out_dtype)


@functools.cache
def hardware_has_fp8() -> bool:
    """The current device multiplies FP8 matrices: CUDA of compute capability 8.9 (Ada, Hopper) or later."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability() >= FP8_CAPABILITY


@fused
def _largest_magnitude(x_RC: torch.Tensor, dim: int | None) -> torch.Tensor:
    """fp32; NaN counts as infinity, which a maximum over ranks keeps (NaN it may drop)."""
    magnitude_RC = x_RC.abs()
    top = magnitude_RC.amax() if dim is None else magnitude_RC.amax(dim, keepdim=True)
    return top.float().nan_to_num(nan=torch.inf, posinf=torch.inf)


@fused
def _scale_from(top: torch.Tensor, largest: float) -> torch.Tensor:
    scale = (largest / top).clamp(max=MAX_SCALE)
    return scale.masked_fill(top == 0, 1.0).masked_fill(top.isinf(), torch.nan)


@fused
def _cast(x_RC: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    largest = torch.finfo(dtype).max
    return (x_RC.float() * scale).clamp(-largest, largest).to(dtype)


@fused
def _turn(bytes_RC: torch.Tensor) -> torch.Tensor:
    return bytes_RC.t().contiguous()


def resolve_fp8(fp8: Fp8Config) -> Fp8Config:
    """The configuration that this device carries out; `recipe="none"` where FP8 is switched off for want of hardware.

    Raises `ConfigError` where hardware is absent and must not be, and for formats that no hardware multiplies.
    """
    if fp8.recipe == "none":
        return fp8
    if fp8.forward_dtype == "e5m2":
        raise ConfigError(
            f"fp8.forward_dtype={fp8.forward_dtype} multiplies e5m2 by e5m2, which no hardware does; "
            "use fp8.forward_dtype=e4m3"
        )
    if hardware_has_fp8() or fp8.without_hardware == "emulate":
        return fp8
    if fp8.without_hardware == "off":
        return replace(fp8, recipe="none")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    raise ConfigError(
        f"fp8.recipe={fp8.recipe} needs FP8 matrix products, which {device} has not; set fp8.recipe=none, "
        "fp8.without_hardware=emulate (same numbers, slow) or fp8.without_hardware=off"
    )
