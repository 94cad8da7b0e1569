"""The clock around steps, and a process's peak memory.

Place in the flow: below `one`; the same for every peer. Invariant: warm-up steps are outside the clock, and the
device is idle when it starts and when it stops.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

Step = Callable[[int], Any]
"""Does optimizer step n and returns its loss, a number or a tensor of one."""
LEARNING_RATE = 1e-4
CLIP = 1.0


def measure(step: Step, warmup: int, steps: int, block: int, on_gpu: bool) -> dict[str, Any]:
    """Seconds of a step, one number for every `block` steps; losses of all steps; peak memory in bytes;
    seconds of a step that this process's threads spent on the CPU.

    Within a block nobody waits for the device but who does so by itself.
    """
    losses: list[Any] = [step(number) for number in range(warmup)]
    _idle(on_gpu)
    gc.collect()
    _forget_peak(on_gpu)
    step_s: list[float] = []
    used_s = time.process_time()
    for first in range(warmup, warmup + steps, block):
        numbers = range(first, min(first + block, warmup + steps))
        started_s = time.perf_counter()
        losses += [step(number) for number in numbers]
        _idle(on_gpu)
        step_s.append((time.perf_counter() - started_s) / len(numbers))
    used_s = time.process_time() - used_s
    return {
        "step_s": step_s,
        "cpu_s": used_s / steps,
        "losses": [float(loss) for loss in losses],
        "peak_bytes": _peak_bytes(on_gpu),
    }


def _idle(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _forget_peak(on_gpu: bool) -> None:
    """What was needed to get ready (a checkpoint in memory, compilers) is no part of the peak."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # the peak is otherwise that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes(on_gpu: bool) -> int:
    if on_gpu:
        return int(torch.cuda.max_memory_allocated())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
