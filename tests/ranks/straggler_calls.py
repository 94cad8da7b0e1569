"""What the tests of stragglers run on warm ranks: real training, with one rank that is made slow on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from rank_calls import Outcome, train

USUAL_S, IN_COLLECTIVES_S = 0.3, 2.0
"""What every rank takes for a step by the stopwatch of `paced`, and for a collective."""


@contextmanager
def around_collectives(around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Meanwhile what torch's process groups are called by is `around(method)`."""
    from torch.distributed import ProcessGroup, Work

    from cptron.runtime import waits

    owners = {ProcessGroup: waits._STARTS, Work: ("wait",)}
    kept = [
        (owner, name, owner.__dict__[name])
        for owner in owners
        for name in owners[owner]
        if name in owner.__dict__
    ]
    for owner, name, _ in kept:
        setattr(owner, name, around(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, raw in kept:
            setattr(owner, name, raw)


@contextmanager
def paced() -> Iterator[list[float]]:
    """Meanwhile `OwnTime` reads a clock that only this file moves: on a machine with other work the wall's says which
    rank that has disturbed. Yields the clock, in seconds. Collectives take long by it, so they must not count."""
    from cptron.runtime import waits

    now_s = [0.0]

    def slowed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            now_s[0] += IN_COLLECTIVES_S
            return method(*words, **named)

        return call

    clock, waits.time = waits.time, SimpleNamespace(perf_counter=lambda: now_s[0])  # type: ignore[assignment]
    try:
        with around_collectives(slowed):
            yield now_s
    finally:
        waits.time = clock


def train_with_slow(
    config: str, overrides: list[str], slow_rank: int, slow_s: float, where: str, until_step: int = 10**9
) -> Outcome:
    """Train, while `slow_rank` takes `slow_s` more in the forward pass of each micro-batch (`forward`) or while it
    draws the batch (`data`); up to a step."""
    from cptron.runtime import pipeline
    from cptron.runtime.launcher import launched_ranks
    from cptron.train import stragglers
    from cptron.train.guards import Guards

    ranks = launched_ranks()
    assert ranks is not None
    forward, draw, begin = pipeline._forward, Guards.next_batches, stragglers.Stragglers.begin
    step = [0]

    def slow_forward(*words: Any, **named: Any) -> Any:
        dawdle("forward")
        return forward(*words, **named)

    def slow_draw(self: Any) -> Any:
        now_s[0] += USUAL_S
        dawdle("data")
        return draw(self)

    def begin_and_count(self: Any, run: Any) -> float:
        step[0] = run.state.step
        return begin(self, run)

    def dawdle(here: str) -> None:
        if here == where and ranks.rank == slow_rank and step[0] < until_step:
            now_s[0] += slow_s

    pipeline._forward = slow_forward
    Guards.next_batches = slow_draw  # type: ignore[method-assign]
    stragglers.Stragglers.begin = begin_and_count  # type: ignore[method-assign]
    try:
        with paced() as now_s:
            return train(config, overrides)
    finally:
        pipeline._forward = forward
        Guards.next_batches = draw  # type: ignore[method-assign]
        stragglers.Stragglers.begin = begin  # type: ignore[method-assign]


def own_time_of_a_wait(slow_rank: int, sleep_s: float) -> dict[str, float]:
    """Own and waiting seconds of a rank by `OwnTime`, where `slow_rank` comes late to a collective; and by clocks read
    just within and just outside of what they are of, whatever else the machine does."""
    import torch
    import torch.distributed as dist

    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.session import open_session
    from cptron.runtime.waits import OwnTime

    ranks = launched_ranks()
    assert ranks is not None
    within_s = [0.0]

    def measured(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return method(*words, **named)
            finally:
                within_s[0] += time.perf_counter() - start_s

        return call

    with open_session(ranks, device="cpu", threads_per_rank=1), around_collectives(measured):
        clock = OwnTime(torch.device("cpu"))
        before = dict(dist.ProcessGroup.__dict__)
        dist.barrier()
        began_s = time.perf_counter()
        within_s[0] = 0.0
        clock.begin()
        begun_s = time.perf_counter()
        if ranks.rank == slow_rank:
            time.sleep(sleep_s)
        waits_s = time.perf_counter()
        dist.all_reduce(torch.ones(4))
        work = dist.all_reduce(torch.ones(4), async_op=True)
        work.wait()
        waited_s = time.perf_counter()
        busy = clock.end()
        ended_s = time.perf_counter()
        assert busy is not None and dict(dist.ProcessGroup.__dict__) == before
        assert clock.end() is None
        return {
            "own": busy.own_s,
            "wait": busy.wait_s,
            "all": busy.own_s + busy.wait_s,
            "least_wait": within_s[0],
            "most_wait": waited_s - waits_s,
            "least_all": waited_s - begun_s,
            "most_all": ended_s - began_s,
        }
