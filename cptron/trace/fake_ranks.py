"""One rank of any number, alone: torch's fake process group, which sends nothing, with megatron-core's groups on it.

Place in the flow: in place of `runtime.session.open_session` where a rank is traced. Invariant: leaving the context
leaves no group behind, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from cptron.errors import LaunchError
from cptron.runtime import groups
from cptron.runtime.dist import shutdown
from cptron.runtime.topology import Topology


@contextmanager
def open_fake_rank(topology: Topology, rank: int) -> Iterator[None]:
    """Be `rank` of `topology` in the context. Raises `LaunchError` where torch has no fake process group, or a real one
    is there."""
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        raise LaunchError(
            f"this torch has no fake process group ({error}); install torch 2.6 or newer, or plan without --dry-run"
        ) from None
    if dist.is_initialized():
        raise LaunchError(
            f"a process group of {dist.get_world_size()} rank(s) already exists; destroy it first"
        )
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=topology.world_size)
    try:
        groups.init_groups(topology, seed=0)
        yield
    finally:
        groups.destroy_groups()
        shutdown()
