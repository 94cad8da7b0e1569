"""How much of a stretch of time this rank itself was busy, and how much it waited in collectives.

Place in the flow: around a step that `train.stragglers` measures; at other times nothing of it is there. On a GPU the
time is that of the stream which computes, by events, on the CPU that of the wall. Invariant: what torch's process
groups are called with, and return, is the same with and without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.distributed import ProcessGroup, Work

_STARTS = (
    "allreduce",
    "allreduce_coalesced",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "_allgather_base",
    "all_gather_single",
    "alltoall",
    "alltoall_base",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "gather",
    "recv",
    "recv_anysource",
    "reduce",
    "reduce_scatter",
    "_reduce_scatter_base",
    "reduce_scatter_single",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "send",
    "_end_coalescing",
)
"""Methods of a process group that begin a collective or a message; NCCL may put it on the computing stream at once."""


class Busy(NamedTuple):
    """One stretch of time of one rank."""

    own_s: float
    """Not in collectives: computing, reading data, or standing still by itself."""
    wait_s: float
    """In collectives: waiting for the others, and for the bytes."""


class OwnTime:
    """A stopwatch that stands still in collectives. Between `begin` and `end` the methods of torch's process groups
    pass through it, those of all threads."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._replaced: list[tuple[type, str, Any]] = []
        self._spans: list[tuple[Any, Any]] = []
        self._began: Any = None

    def begin(self) -> None:
        """Start from zero."""
        self.stop()
        self._spans = []
        for owner, names in ((ProcessGroup, _STARTS), (Work, ("wait",))):
            for name in names:
                if name in owner.__dict__:  # versions of torch differ
                    # what the class holds: an attribute looked up on it would lose its `self` when put back
                    self._replaced.append((owner, name, owner.__dict__[name]))
                    setattr(owner, name, self._timed(getattr(owner, name)))
        self._began = self._now()

    def end(self) -> Busy | None:
        """What has passed since `begin`; None without one. On a GPU it waits for the stream."""
        if self._began is None:
            return None
        began, ended = self._began, self._now()
        self.stop()
        if self._on_gpu:
            ended.synchronize()
        wait_s = sum(self._seconds(first, last) for first, last in self._spans)
        self._spans = []
        return Busy(max(0.0, self._seconds(began, ended) - wait_s), wait_s)

    def stop(self) -> None:
        """Put everything back; whatever was measured is forgotten."""
        while self._replaced:
            owner, name, raw = self._replaced.pop()
            setattr(owner, name, raw)
        self._began = None

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        spans = self._spans

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self._now()
            try:
                return method(*args, **kwargs)
            finally:
                spans.append((before, self._now()))

        return timed

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) / 1e3 if self._on_gpu else float(last - first)
