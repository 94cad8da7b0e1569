"""Lets unmodified megatron-core run on a machine without CUDA.

Place in the flow: the runtime calls `apply()` once, before megatron-core is imported, and only where CUDA
is absent. megatron-core names CUDA in hundreds of places, but nearly all of them go through the few `torch`
symbols replaced here. Invariant: after `apply()` every replaced symbol has CPU semantics of the same
operation; nothing of the engine is replaced.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

from cptron.errors import LaunchError

FACTORIES = (
    "tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "rand",
    "randn",
    "randint",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "as_tensor",
)
"""Functions whose `device="cuda"` argument is answered with a CPU tensor."""

_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}
"""megatron-core's optimizers compare `param.type()` with these strings to sort parameters by precision."""

_applied = False


class HostStream:
    """A CUDA stream's interface where all work is already synchronous."""

    device = torch.device("cpu")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """No work is ever pending."""

    def wait_event(self, event: Any) -> None:
        """No work is ever pending."""

    def record_event(self, event: Any = None) -> HostEvent:
        """An event that has already happened."""
        return event or HostEvent()

    def synchronize(self) -> None:
        """No work is ever pending."""

    def query(self) -> bool:
        """All work is done."""
        return True


class HostEvent:
    """A CUDA event's interface where all work is already synchronous."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """No work is ever pending."""

    def wait(self, stream: Any = None) -> None:
        """No work is ever pending."""

    def synchronize(self) -> None:
        """No work is ever pending."""

    def query(self) -> bool:
        """All work is done."""
        return True


class _HostGenerators:
    """`torch.cuda.default_generators`: every index answers the CPU generator."""

    def __getitem__(self, index: int) -> torch.Generator:
        return torch.default_generator


@contextlib.contextmanager
def _on_stream(stream: Any) -> Iterator[None]:
    yield


def _nothing() -> Callable[..., None]:
    """A new no-op each time: torch's compiler refuses one function object under two names."""
    return lambda *args, **kwargs: None


def _is_cuda(device: Any) -> bool:
    return isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda"


def _on_host(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a tensor factory so that a CUDA device means the CPU, and pinned memory plain memory."""

    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapped


def _among_ranks(collective: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a collective of (output, input) so that one rank alone does nothing in place, as NCCL does; gloo copies."""

    @functools.wraps(collective)
    def wrapped(
        output: torch.Tensor,
        input: torch.Tensor,
        *args: Any,
        group: Any = None,
        async_op: bool = False,
        **kwargs: Any,
    ) -> Any:
        in_place = output.data_ptr() == input.data_ptr() and output.numel() == input.numel()
        if in_place and not async_op and not args and dist.get_world_size(group) == 1:
            return None
        return collective(output, input, *args, group=group, async_op=async_op, **kwargs)

    return wrapped


def _compiled_when_called(compile: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `torch.compile` so that a decorated function is compiled when it is first called. megatron-core decorates
    dozens of which a CPU calls none, and the compiler alone takes longer to import than torch."""

    @functools.wraps(compile)
    def deferred(model: Any = None, **options: Any) -> Any:
        if not isinstance(model, FunctionType):
            return compile(model, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile(model, **options))
            return compiled[0](*args, **kwargs)

        return call

    return deferred


def _tensor_type(tensor: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dtype is None and tensor.dtype in _TYPE_NAMES:
        return _TYPE_NAMES[tensor.dtype]
    return _torch_type(tensor) if dtype is None else _torch_type(tensor, dtype, *args, **kwargs)


_torch_type = torch.Tensor.type
_torch_to = torch.Tensor.to


def _tensor_to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args and _is_cuda(args[0]):
        args = ("cpu", *args[1:])
    if _is_cuda(kwargs.get("device")):
        kwargs["device"] = "cpu"
    return _torch_to(tensor, *args, **kwargs)


def replacements() -> dict[tuple[Any, str], Any]:
    """Every symbol that `apply` replaces, as (owner, attribute) -> replacement: the whole list, in one
    place."""
    cpu = torch.device("cpu")
    default = torch.default_generator
    table: dict[tuple[Any, str], Any] = {
        (torch, "compile"): _compiled_when_called(torch.compile),
        (torch.cuda, "current_device"): lambda: cpu,
        (torch.cuda, "set_device"): _nothing(),
        (torch.cuda, "synchronize"): _nothing(),
        (torch.cuda, "empty_cache"): _nothing(),
        (torch.cuda, "_lazy_init"): _nothing(),
        (torch.cuda, "_lazy_call"): lambda call, **kwargs: call(),
        (torch.cuda, "Stream"): HostStream,
        (torch.cuda, "Event"): HostEvent,
        (torch.cuda, "current_stream"): lambda device=None: HostStream(),
        (torch.cuda, "default_stream"): lambda device=None: HostStream(),
        (torch.cuda, "stream"): _on_stream,
        (torch.cuda, "manual_seed"): lambda seed: default.manual_seed(seed) and None,
        (torch.cuda, "default_generators"): _HostGenerators(),
        (torch.cuda, "is_current_stream_capturing"): lambda: False,
        (torch.cuda.nvtx, "range_push"): _nothing(),
        (torch.cuda.nvtx, "range_pop"): _nothing(),
        (torch.Tensor, "cuda"): lambda tensor, *args, **kwargs: tensor,
        (torch.Tensor, "pin_memory"): lambda tensor, *args, **kwargs: tensor,
        (torch.Tensor, "type"): _tensor_type,
        (torch.Tensor, "to"): _tensor_to,
        (torch.Tensor, "record_stream"): _nothing(),
    }
    for owner in (torch.cuda, torch.cuda.random):
        table[owner, "get_rng_state"] = lambda device=None: default.get_state()
        table[owner, "set_rng_state"] = lambda state, device=None: default.set_state(state)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        table[dist, name] = _among_ranks(getattr(dist, name))
    for name in FACTORIES:
        table[torch, name] = _on_host(getattr(torch, name))
    return table


def apply() -> None:
    """Replace the symbols of `replacements()`, once. Raises `LaunchError` where CUDA exists: it must be
    used then."""
    global _applied
    if _applied:
        return
    if torch.cuda.is_available():
        raise LaunchError(
            f"the host adaptor is for machines without CUDA, but {torch.cuda.device_count()} CUDA device(s) are "
            "visible; use them, or hide them with CUDA_VISIBLE_DEVICES= and start again"
        )
    # `with torch.device(...)` recognises factories by identity, from a table it makes at first use: make it now, with
    # the originals, or it would silently stop working in this process (transformers builds models under it)
    _device_constructors()
    for (owner, name), value in replacements().items():
        setattr(owner, name, value)
    _applied = True
