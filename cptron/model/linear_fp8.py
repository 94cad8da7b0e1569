"""megatron-core's tensor-parallel linears with their three products in FP8.

Place in the flow: the native layer spec asks for these classes in place of the base classes; `fp8` holds the
arithmetic. Adapter for `megatron.core.tensor_parallel.layers`. Saved for the backward pass are the input in FP8 and
the weight itself, which is quantised again. Invariant: a scale covers what the tensor ranks hold together, so numbers
do not depend on the cut beyond the order of fp32 sums; parameters and checkpoints are those of the base class.

Shapes: S sequence, B batch, T = S * B tokens, K inputs and N outputs of the layer on this rank, X = T / tp tokens of
this rank under sequence parallelism, else T. Column-parallel layers cut N, row-parallel ones K.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from cptron.config.schema import Fp8Config
from cptron.model.fp8 import DTYPES, Scaled, find_scale, matmul, quantize


@dataclass(frozen=True, slots=True)
class Plan:
    """How one layer quantises and communicates. A cut is the axis along which tensor ranks hold parts."""

    recipe: str
    forward_dtype: torch.dtype
    gradient_dtype: torch.dtype
    group: Any
    input_cut: int | None
    weight_cut: int
    output_cut: int | None
    allreduce_dgrad: bool
    sequence_parallel: bool
    saves_input: bool

    def scale(self, x_RC: torch.Tensor, dtype: torch.dtype, dim: int, cut: int | None) -> torch.Tensor:
        """Scale of an operand contracted along `dim`; over the tensor ranks where they hold parts of what it covers."""
        axis = dim if self.recipe == "rowwise" else None
        group = self.group if cut is not None and axis in (None, cut) else None
        return find_scale(x_RC, dtype, axis, group)


class Fp8Linear(torch.autograd.Function):
    """y_TN = x_TK W_NK^T, dx_TK = dy_TN W_NK, dW_NK = dy_TN^T x_TK; each operand quantised for its contraction."""

    @staticmethod
    def forward(
        ctx: Any, x_SBK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, plan: Plan
    ) -> torch.Tensor:
        """The product, of the whole sequence under sequence parallelism."""
        parameter_NK, weight_NK = weight_NK, weight_NK.detach()
        x_XK = x_SBK.reshape(-1, x_SBK.size(-1))
        low = plan.forward_dtype
        weight_scale = plan.scale(weight_NK, low, 1, plan.weight_cut)
        weight8_NK = quantize(weight_NK, weight_scale, low)
        x8_XK = quantize(x_XK, plan.scale(x_XK, low, 1, plan.input_cut), low)
        x8_TK = _gathered(x8_XK, plan.group)[0] if plan.sequence_parallel else x8_XK
        y_TN = matmul(x8_TK, weight8_NK, x_SBK.dtype, fast_accumulation=True)
        if bias_N is not None:
            y_TN = y_TN + bias_N
        if plan.recipe == "rowwise" and plan.saves_input:  # dW contracts the tokens
            x8_XK = quantize(x_XK, plan.scale(x_XK, low, 0, plan.input_cut), low)
        saved = (x8_XK.data_RC, x8_XK.inverse_scale) if plan.saves_input else (None, None)
        ctx.save_for_backward(parameter_NK, weight_scale, *saved)
        ctx.plan, ctx.shape = plan, x_SBK.shape
        return y_TN.view(-1, *x_SBK.shape[1:-1], y_TN.size(-1))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """Communication runs beside a product: the input is gathered beside dx, dx is reduced beside dW."""
        plan: Plan = ctx.plan
        parameter_NK, weight_scale, x8_data_XK, x8_inverse_scale = ctx.saved_tensors
        weight_NK = parameter_NK.detach()
        needs_dx, needs_dw, needs_db, _ = ctx.needs_input_grad
        (dy_SBN,) = grads
        dy_TN = dy_SBN.reshape(-1, dy_SBN.size(-1)).contiguous()
        dy_scale = plan.scale(dy_TN, plan.gradient_dtype, 1, plan.output_cut)
        dy8_TN = quantize(dy_TN, dy_scale, plan.gradient_dtype)
        gathering = reducing = dx_SBK = dw_NK = None
        if needs_dw:
            x8_TK = Scaled(x8_data_XK, x8_inverse_scale)
            if plan.sequence_parallel:
                x8_TK, gathering = _gathered(x8_TK, plan.group, wait=False)
        if needs_dx:
            dx_TK = _input_gradient(dy8_TN, weight_NK, weight_scale, plan, dy_SBN.dtype)
            dx_XK, reducing = _start_reduction(dx_TK, plan)
            dx_SBK = dx_XK.view(ctx.shape)
        if needs_dw:
            if gathering is not None:
                gathering.wait()
            dw_NK = _weight_gradient(dy_TN, dy8_TN, x8_TK, plan, weight_NK.dtype)
        db_N = dy_TN.sum(0) if needs_db else None
        if reducing is not None:
            reducing.wait()
        return dx_SBK, dw_NK, db_N, None


def _input_gradient(
    dy8_TN: Scaled, weight_NK: torch.Tensor, weight_scale: torch.Tensor, plan: Plan, dtype: torch.dtype
) -> torch.Tensor:
    """This rank's summand of dx `[T, K]`; the contraction is N."""
    if plan.recipe == "rowwise":
        weight_scale = plan.scale(weight_NK, plan.forward_dtype, 0, plan.weight_cut)
    weight8_KN = quantize(weight_NK, weight_scale, plan.forward_dtype).turned()
    return matmul(dy8_TN, weight8_KN, dtype)


def _weight_gradient(
    dy_TN: torch.Tensor, dy8_TN: Scaled, x8_TK: Scaled, plan: Plan, dtype: torch.dtype
) -> torch.Tensor:
    """dW `[N, K]`; the contraction is T."""
    if plan.recipe == "rowwise":
        scale = plan.scale(dy_TN, plan.gradient_dtype, 0, plan.output_cut)
        dy8_TN = quantize(dy_TN, scale, plan.gradient_dtype)
    return matmul(dy8_TN.turned(), x8_TK.turned(), dtype)


def _gathered(x8_XK: Scaled, group: Any, *, wait: bool = True) -> tuple[Scaled, Any]:
    """All ranks' tokens, as bytes, and the handle of the communication when it is not waited for.

    Scales of tokens are gathered too; a scale for all tokens is already that of all ranks.
    """
    x_XK, scale = x8_XK.data_RC, x8_XK.inverse_scale
    if scale.dim() and scale.size(1) == 1:
        scale_T1 = scale.new_empty(scale.size(0) * group.size(), 1)
        dist.all_gather_into_tensor(scale_T1, scale, group=group)
        scale = scale_T1
    bytes_TK = x_XK.new_empty(x_XK.size(0) * group.size(), x_XK.size(1), dtype=torch.uint8)
    handle = dist.all_gather_into_tensor(bytes_TK, x_XK.view(torch.uint8), group=group, async_op=not wait)
    return Scaled(bytes_TK.view(x_XK.dtype), scale), handle


def _start_reduction(dx_TK: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Any]:
    """Begin the sum of dx over the tensor ranks, where there is one; this rank's tokens of it, and a handle."""
    if plan.sequence_parallel:
        dx_XK = dx_TK.new_empty(dx_TK.size(0) // plan.group.size(), dx_TK.size(1))
        return dx_XK, dist.reduce_scatter_tensor(dx_XK, dx_TK, group=plan.group, async_op=True)
    if plan.allreduce_dgrad:
        return dx_TK, dist.all_reduce(dx_TK, group=plan.group, async_op=True)
    return dx_TK, None


def _multiply(
    layer: Any,
    cuts: tuple[int | None, int, int | None],
    x_SBK: torch.Tensor,
    weight_NK: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    """What megatron-core asks of `_forward_impl`; `cuts` are those of the input, the weight and the output."""
    for unsupported in ("gradient_accumulation_fusion", "grad_output_buffer"):
        assert not options.get(unsupported), f"{unsupported} with FP8"
    assert options.get("gtp_remat_size", 1) == 1, "weights cut over gtp ranks with FP8"
    fp8: Fp8Config = layer.fp8
    plan = Plan(
        recipe=fp8.recipe,
        forward_dtype=DTYPES[fp8.forward_dtype],
        gradient_dtype=DTYPES[fp8.gradient_dtype],
        group=layer.tp_group,
        input_cut=cuts[0],
        weight_cut=cuts[1],
        output_cut=cuts[2],
        allreduce_dgrad=options["allreduce_dgrad"],
        sequence_parallel=options["sequence_parallel"],
        saves_input=weight_NK.requires_grad and torch.is_grad_enabled(),
    )
    return Fp8Linear.apply(x_SBK, weight_NK, options["bias"], plan)  # type: ignore[no-any-return, no-untyped-call]


class _Fp8ColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
    """Weight and output are cut along N; the input along the tokens, under sequence parallelism."""

    fp8: ClassVar[Fp8Config]
    fp8_is_on = True

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        if not self.fp8_is_on:
            return super()._forward_impl(input, weight, **options)  # type: ignore[no-any-return]
        cuts = (0 if options["sequence_parallel"] else None, 0, 1)
        return _multiply(self, cuts, input, weight, options)


class _Fp8RowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """Input and weight are cut along K; the output is each rank's summand, and its gradient the same on all."""

    fp8: ClassVar[Fp8Config]
    fp8_is_on = True

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        if not self.fp8_is_on:
            return super()._forward_impl(input, weight, **options)  # type: ignore[no-any-return]
        return _multiply(self, (1, 1, None), input, weight, options)


@contextmanager
def without_fp8(chunks: Sequence[Any]) -> Iterator[None]:
    """Within this context the chunks multiply in the precision of their weights: what their checkpoints record."""
    linears = [
        module
        for chunk in chunks
        for module in chunk.modules()
        if isinstance(module, _Fp8ColumnParallelLinear | _Fp8RowParallelLinear)
    ]
    configs = {
        id(chunk.config): (chunk.config, chunk.config.fp8) for chunk in chunks
    }  # Transformer Engine's switch
    try:
        for linear in linears:
            linear.fp8_is_on = False
        for config, _ in configs.values():
            config.fp8 = None
        yield
    finally:
        for linear in linears:
            linear.fp8_is_on = True
        for config, fp8 in configs.values():
            config.fp8 = fp8


@functools.cache
def fp8_column_parallel(fp8: Fp8Config) -> type:
    """`ColumnParallelLinear` that multiplies as `fp8` says; built like the base class."""
    return type("Fp8ColumnParallelLinear", (_Fp8ColumnParallelLinear,), {"fp8": fp8})


@functools.cache
def fp8_row_parallel(fp8: Fp8Config) -> type:
    """`RowParallelLinear` that multiplies as `fp8` says; built like the base class."""
    return type("Fp8RowParallelLinear", (_Fp8RowParallelLinear,), {"fp8": fp8})
