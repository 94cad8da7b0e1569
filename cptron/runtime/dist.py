"""The process group all ranks share.

Place in the flow: after the device is known, before megatron-core's groups. Invariant: an error on one rank
is raised on every rank (`agree`), never a hang.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar

from cptron.errors import CptronError, LaunchError
from cptron.runtime.launcher import Ranks, slurm_rendezvous
from cptron.runtime.rendezvous import fresh_store

T = TypeVar("T")


def init_process_group(backend: str, ranks: Ranks, timeout_s: int) -> None:
    """Join the default process group. Under SLURM, MASTER_ADDR and MASTER_PORT are the batch script's, or derived."""
    import torch.distributed as dist

    if dist.is_initialized():
        raise LaunchError(
            f"a process group of {dist.get_world_size()} rank(s) already exists; destroy it first"
        )
    timeout = datetime.timedelta(seconds=timeout_s)
    if ranks.launcher == "single":  # meets nobody: no port, which another process could take first
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    if ranks.launcher == "slurm" and (meeting := slurm_rendezvous(os.environ)):
        os.environ.setdefault("MASTER_ADDR", meeting[0])
        os.environ.setdefault("MASTER_PORT", str(meeting[1]))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LaunchError(
                f"{name} is not set for {ranks.world_size} ranks; export it in the batch script"
            )
    of_the_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        kept = fresh_store(ranks, timeout) if of_the_agent else None  # else made anew by rank 0
        dist.init_process_group(
            backend, store=kept, rank=ranks.rank, world_size=ranks.world_size, timeout=timeout
        )
    except RuntimeError as error:  # torch.distributed's own are, and gloo's
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(
            f"rank {ranks.rank} of {ranks.world_size} did not meet the others at {place} within {timeout_s} s "
            f"({str(error).splitlines()[0]:.200}); see that each rank starts, that MASTER_ADDR is rank 0's machine and "
            "can be reached, and that no other program has MASTER_PORT there"
        ) from error


def agree(action: Callable[[], T]) -> T:
    """Run a rank-local action and let every rank know how it went.

    When any rank fails with a `CptronError`, all ranks raise the error of the lowest failing rank; so no
    rank waits in a collective for one that has gone. Other exceptions propagate where they happen: the
    launcher ends the rest.
    """
    import torch.distributed as dist

    failure: tuple[type[CptronError], str] | None = None
    result: Any = None
    try:
        result = action()
    except CptronError as error:
        failure = (type(error), str(error))
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found[0](found[1])
    return result  # type: ignore[no-any-return]


def from_main(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, where alone it runs, on every rank; its `CptronError` too."""
    import torch.distributed as dist

    found: list[Any] = [agree(lambda: action() if dist.get_rank() == 0 else None)]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[no-any-return]


def to_main(value: T) -> list[T]:
    """What every rank has, by rank, on rank 0; an empty list on the others, which need no memory for it."""
    import torch.distributed as dist

    found: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, found, dst=0)
    return found or []


def shutdown() -> None:
    """Leave the process group, if any."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
