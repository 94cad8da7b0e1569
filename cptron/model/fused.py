"""Pointwise work as one kernel on GPUs.

Place in the flow: a decorator of small pure functions of the model room. Invariant: the same function on the CPU, where
it is simply called; compiled when it first meets a CUDA tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

stand_in: Callable[..., Any] | None = None
"""Called in place of a kernel, with the function and its arguments: a dry run computes nothing."""


def fused(function: F) -> F:
    """`function`, compiled by torch where its first argument is on a GPU."""
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not first.is_cuda:
            return function(first, *args, **kwargs)
        if stand_in is not None:
            return stand_in(function, first, *args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function))
        return compiled[0](first, *args, **kwargs)

    return call  # type: ignore[return-value]
