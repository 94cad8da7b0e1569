"""What takes the place of symbols of torch while fake tensors are traced.

Place in the flow: entered by a dry run, beside the host adaptor, which gives CUDA's names a meaning on a machine
without it. Two lists: what any trace needs, since fake tensors hold no numbers and fake ranks say nothing; and what
makes the trace that of a GPU, whose kernels are other ones. Invariant: leaving the context puts every symbol back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.fusions import fused_bias_swiglu

from cptron.model import fused
from cptron.optim import names
from cptron.trace.tracker import Tracker

Table = dict[tuple[Any, str], Any]


class FakeTracker(Tracker):
    """A tracker of fake tensors and ranks, which answers what these cannot: a number that is asked for is 1, and
    messages that torch has no fake form of have arrived."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer, or run the operation and look at its results."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func.namespace == "c10d" and func._schema.name.endswith("coalesced_"):
            return _done()
        return super().__torch_dispatch__(func, types, args, kwargs)


def _numbers(data: Any) -> Any:
    """Lists, at any depth, with 1 in place of tensors."""
    if isinstance(data, list | tuple):
        return [_numbers(value) for value in data]
    return 1.0 if isinstance(data, FakeTensor) else data


def _done() -> Any:
    from torch._C._distributed_c10d import FakeWork

    return FakeWork().boxed()


def for_any_trace(names_elsewhere: Collection[str] = ()) -> Table:
    """Symbols that fake tensors and ranks need; `names_elsewhere` are those of parameters of other ranks."""
    tensor = torch.tensor

    def of_numbers(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor(_numbers(data), *args, **kwargs)

    def gather(found: list[Any], mine: Any, *args: Any, **kwargs: Any) -> None:
        found[:] = [mine] * len(found)  # the others have what this rank has

    def ones(fake: torch.Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
        return np.ones(tuple(fake.shape))

    return {
        (torch, "tensor"): of_numbers,
        (dist, "all_gather_object"): gather,
        (FakeTensor, "numpy"): ones,
        (names, "_names_anywhere"): lambda params: {*params, *names_elsewhere},
    }


def for_gpu(tracker: Tracker) -> Table:
    """Symbols that make code take the way that it takes on a GPU, and memory that of a GPU's kernels."""

    def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: tracker.as_one_kernel(function, *args)

    swiglu, swiglu_back = (
        getattr(function, "__wrapped__", function)
        for function in (fused_bias_swiglu.swiglu, fused_bias_swiglu.swiglu_back)
    )
    return {
        (torch.cuda, "is_available"): lambda: True,
        (torch.cuda, "device_count"): lambda: 1,
        (torch.cuda, "get_device_capability"): lambda device=None: (9, 0),
        (torch.nn.Module, "cuda"): lambda module, device=None: module,
        (FakeTensor, "is_cuda"): property(lambda tensor: True),
        (F, "rms_norm"): _rms_norm,
        (F, "scaled_dot_product_attention"): _attention,
        (fused, "stand_in"): tracker.as_one_kernel,
        (fused_bias_swiglu, "swiglu"): one_kernel(swiglu),
        (fused_bias_swiglu, "swiglu_back"): one_kernel(swiglu_back),
    }


@contextmanager
def replaced(table: Table) -> Iterator[None]:
    """With the symbols of `table` in place of torch's."""
    nothing = object()
    before = {(owner, name): vars(owner).get(name, nothing) for owner, name in table}
    try:
        for (owner, name), value in table.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in before.items():
            if value is nothing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


class _RmsNorm(torch.autograd.Function):
    """Memory of the one kernel that computes the norm: it keeps its input, the weight, and a statistic of each row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        statistic = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, statistic)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(
    x: torch.Tensor, shape: Any, weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    assert weight is not None
    return _RmsNorm.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Flash attention, which keeps no scores."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(query, key, value, 0.0, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
