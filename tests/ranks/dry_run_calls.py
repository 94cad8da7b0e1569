"""What the tests of dry runs call on warm ranks: a real step, and a traced one, seen by the same tracker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor

from cptron.config.schema import Config, ParamGroupConfig
from cptron.errors import ConfigError
from cptron.model import fused
from cptron.model.architecture import Architecture
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.trace.ledger import Ledger, Moment
from cptron.trace.stand_ins import for_any_trace, for_gpu
from cptron.trace.tracker import Tracker
from cptron.train.dry_run import step_of, trace_rank, traced_batches


def measured(config: Config, arch: Architecture) -> tuple[Moment, Moment, int]:
    """Of a real step on gloo: before it, at its fullest moment, and the most that torch's own profiler has seen
    allocated."""
    layout = Layout.of(config.parallel)
    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, layout, threads_per_rank=1) as session:
        batches = traced_batches(
            config, session.topology, 0
        )  # all stages the same number, more than is traced
        tracker = Tracker(Ledger())
        on_cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=on_cpu, profile_memory=True) as profile, tracker:
            static = step_of(config, arch, batches, tracker, on_gpu=False)
        return static, tracker.ledger.peak(), _most_allocated(profile)


def _most_allocated(profile: Any) -> int:
    """By the allocator's own events, in the order of time."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    most = total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def traced(
    config: Config, arch: Architecture, world_size: int, ranks: list[int], *, on_gpu: bool = False
) -> list[tuple[Moment, Moment, int]]:
    """The same of ranks that are not there: before the step, at its fullest moment, and micro-batches traced."""
    found = [trace_rank(config, arch, world_size, rank, on_gpu=on_gpu) for rank in ranks]
    return [(one.static, one.peak, one.micro_batches) for one in found]


def left_behind(config: Config, arch: Architecture) -> list[str]:
    """What a traced rank leaves changed in its process, also where it fails."""
    before = _symbols()
    trace_rank(config, arch, 8, 0, on_gpu=True)
    unknown = replace(config.optim, groups=(ParamGroupConfig(match="absent", lr_mult=2.0),))
    refused = ""
    try:
        trace_rank(replace(config, optim=unknown), arch, 8, 0, on_gpu=True)
    except ConfigError as error:
        refused = str(error)
    found = [name for name, value in _symbols().items() if value is not before[name]]
    if dist.is_initialized():
        found.append("process group")
    if "absent" not in refused:
        found.append("a pattern that fits nothing was accepted")
    return found


def _symbols() -> dict[str, Any]:
    table = for_any_trace() | for_gpu(Tracker(Ledger()))
    found = {f"{owner!r}.{name}": vars(owner).get(name) for owner, name in table}
    return found | {"stand_in": fused.stand_in, "is_cuda": FakeTensor.is_cuda}
