"""Names the ranks that are slower than those that do the same work, with the machine they are on.

Place in the flow: a hook on every rank, and a mark at the beginning of a step. Every `runtime.straggler_every_steps`
steps a step is measured and the ranks tell each other in one small collective; other steps cost nothing. Invariant:
never changes a run: what is found is said and recorded, and nothing else.

What is compared is a rank's own time: the step without what it waited in collectives (`runtime.waits`). The steps of
all ranks take equally long, since each waits for the slowest in every layer (tensor), every step (data) or every
micro-batch (pipeline); the slow one is the one that does not wait.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from cptron.health.outliers import WINDOW, Standing, standings
from cptron.runtime.waits import Busy, OwnTime
from cptron.train.hooks import Action, Hook, Record

if TYPE_CHECKING:
    from cptron.train.setup import Run

OVER = 0.5
"""Of the way from the limit to its peers, back at which a slow rank is slow no more."""


class Seat(NamedTuple):
    """Where a rank sits, and what it does."""

    host: str
    local_rank: int
    stage: int
    weights: float


class Stragglers(Hook):
    """Watches the ranks of a run; does nothing at all with one rank, or where it is turned off."""

    def __init__(self, run: Run, hooks: Sequence[Hook]) -> None:
        """Collective where it is on: the ranks say on which machine they are."""
        runtime, ranks = run.config.runtime, run.session.ranks
        self._hooks, self._limit = hooks, runtime.straggler_factor
        self._every = runtime.straggler_every_steps if ranks.world_size > 1 else 0
        self._device = run.session.device.torch_device
        self._clock = OwnTime(self._device)
        self._own_s: deque[list[float]] = deque(maxlen=WINDOW)
        self._slow: set[int] = set()
        self._seats: list[Any] = [None] * ranks.world_size
        if self._every:
            stage = run.session.topology.pp_rank(ranks.rank)
            mine = Seat(socket.gethostname(), ranks.local_rank, stage, _weights(run.chunks))
            dist.all_gather_object(self._seats, mine)

    def begin(self, run: Run) -> float:
        """A step begins; returns the clock (`perf_counter`), for the step's own time."""
        self._clock.stop()  # of a step that came to nothing
        if self._every and (run.state.step + 1) % self._every == 0:
            self._clock.begin()
        return time.perf_counter()

    def on_step(self, run: Run, record: Record) -> Action:
        """Look at a step that was measured. Collective then."""
        busy = self._clock.end()
        if busy is not None:
            self._own_s.append(_gathered(busy, self._device))
            if len(self._own_s) == WINDOW:
                self._judge(run)
        return Action.CONTINUE

    def on_drop(self, run: Run) -> None:
        """The step was none."""
        self._clock.stop()

    def close(self) -> None:
        """Leave torch's process groups as they were."""
        self._clock.stop()

    def _judge(self, run: Run) -> None:
        stages, weights = [seat.stage for seat in self._seats], [seat.weights for seat in self._seats]
        over = 1 + OVER * (self._limit - 1)
        for rank, standing in enumerate(standings(self._own_s, stages, weights, self._limit)):
            if standing.is_slow and rank not in self._slow:
                self._slow.add(rank)
                self._say(run, rank, standing, "slow")
            elif rank in self._slow and standing.factor < over:
                self._slow.discard(rank)
                self._say(run, rank, standing, "recovered")

    def _say(self, run: Run, rank: int, standing: Standing, event: str) -> None:
        seat = self._seats[rank]
        record: Record = {
            "kind": "straggler",
            "step": run.state.step,
            "event": event,
            "rank": rank,
            "host": seat.host,
            "local_rank": seat.local_rank,
            "place": run.session.topology.place(rank),
            "factor": standing.factor,
            "own_time_s": standing.own_s,
            "peers_time_s": standing.peers_s,
        }
        for hook in self._hooks:
            hook.on_straggler(run, record)


def _gathered(busy: Busy, device: torch.device) -> list[float]:
    """Own seconds of all ranks, by rank."""
    mine = torch.tensor([busy.own_s], dtype=torch.float64, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return torch.cat(found).tolist()


def _weights(chunks: Sequence[Any]) -> float:
    """Weights on this rank that its tokens are multiplied with; embeddings are looked up."""
    return float(
        sum(
            weight.numel()
            for chunk in chunks
            for name, weight in chunk.named_parameters()
            if weight.dim() > 1 and "embedding" not in name
        )
    )
