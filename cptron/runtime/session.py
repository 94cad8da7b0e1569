"""A ready process: device chosen, process group joined, megatron-core's groups made; and all of it undone
at the end.

Place in the flow: wraps whatever needs the engine: training, evaluation, conversion. Invariant: leaving the
context leaves no group behind, also after an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from cptron.runtime import dist, groups
from cptron.runtime.device import Device, select_device
from cptron.runtime.launcher import Ranks
from cptron.runtime.pace import Pace
from cptron.runtime.topology import Layout, Topology

SINGLE = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1, launcher="single")


@dataclass(frozen=True, slots=True)
class Session:
    """What the engine needs to know of its process."""

    ranks: Ranks
    topology: Topology
    device: Device
    pace: Pace = field(default_factory=Pace)

    @property
    def dp_rank(self) -> int:
        """This rank's position on the data axis."""
        return self.topology.dp_rank(self.ranks.rank)

    @property
    def reads_data(self) -> bool:
        """This rank reads tokens and labels: the first of its tensor parallel group, in the first or last stage.
        The others know the documents of their samples from the index."""
        rank, topology = self.ranks.rank, self.topology
        return topology.tp_rank(rank) == 0 and topology.pp_rank(rank) in (0, topology.layout.pp - 1)

    @property
    def hands_data_on(self) -> bool:
        """The first of a tensor parallel group broadcasts what it read to the others."""
        return self.topology.layout.tp > 1


@contextmanager
def open_session(
    ranks: Ranks = SINGLE,
    layout: Layout | None = None,
    *,
    seed: int = 1234,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads_per_rank: int = 0,
    timeout_s: int = 600,
) -> Iterator[Session]:
    """Join the ranks into one engine for the duration of the context."""
    topology = Topology(ranks.world_size, layout or Layout())
    if topology.layout.tp * topology.layout.cp > 1:
        # kernels start in the order of their calls, so that a message sent before a matrix product overlaps with it
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    chosen = select_device(device, ranks.local_rank)
    if chosen.kind == "cpu":
        torch.set_num_threads(threads_per_rank or max(1, (os.cpu_count() or 1) // ranks.local_world_size))
    dist.init_process_group(chosen.backend, ranks, timeout_s)
    try:
        groups.init_groups(topology, seed, timeout_s)
        yield Session(ranks, topology, chosen)
    finally:
        groups.destroy_groups()
        dist.shutdown()
