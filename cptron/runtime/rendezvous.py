"""A part of torchrun's store that no earlier start of the ranks has written to.

Place in the flow: before the process group is made, where torchrun's agent keeps the store. The agent keeps it over
restarts, and gloo finds the addresses of dead ranks in it. Invariant: all ranks of one start get the same part, ranks
of two starts never, whichever of them died before it joined.
"""

from __future__ import annotations

import datetime
import os
import time
import uuid

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from cptron.errors import LaunchError
from cptron.runtime.launcher import Ranks

POLL_S = 0.02
MOST_POLLS_PER_S = 5000.0
"""Of all ranks together: the store is one process."""
CURRENT = "cptron/start"


def fresh_store(ranks: Ranks, timeout: datetime.timedelta) -> Store:
    """The part of the agent's store for this start. Raises `LaunchError` when not all ranks come in time."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timeout)
    deadline_s = time.monotonic() + timeout.total_seconds()
    if ranks.is_main:
        start = uuid.uuid4().hex
        store.set(CURRENT, start)
        while (joined := store.add(f"{start}/joined", 0)) < ranks.world_size - 1:
            if time.monotonic() > deadline_s:
                raise LaunchError(
                    f"{joined + 1} of {ranks.world_size} ranks came within {timeout.total_seconds():g} s; "
                    "see why the others did not start, or raise runtime.timeout_s"
                )
            time.sleep(POLL_S)
        store.set(f"{start}/complete", "1")
    else:
        start = _join(store, ranks, deadline_s)
    return PrefixStore(start, store)


def _join(store: Store, ranks: Ranks, deadline_s: float) -> str:
    """Find the start of the living rank 0: the one that becomes complete with this rank in it."""
    start, mine = "", False
    while not (mine and store.check([f"{start}/complete"])):
        if time.monotonic() > deadline_s:
            raise LaunchError(
                f"rank {ranks.rank} found no rank 0; see why it did not start, or raise runtime.timeout_s"
            )
        time.sleep(max(POLL_S, ranks.world_size / MOST_POLLS_PER_S))
        if store.check([CURRENT]) and (current := store.get(CURRENT).decode()) != start:
            start = current
            mine = store.add(f"{start}/rank_{ranks.rank}", 1) == 1  # else one that is dead was in it
            if mine:
                store.add(f"{start}/joined", 1)
    return start
