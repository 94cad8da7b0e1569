"""What the tests of stragglers run on warm ranks: real training, with one rank that is made slow on purpose."""

from __future__ import annotations

import time
from typing import Any

from rank_calls import Outcome, train


def train_with_slow(
    config: str, overrides: list[str], slow_rank: int, sleep_s: float, where: str, until_step: int = 10**9
) -> Outcome:
    """Train, while `slow_rank` sleeps in the forward pass of each micro-batch (`forward`) or while it draws the batch
    (`data`); up to a step."""
    from cptron.runtime import pipeline
    from cptron.runtime.launcher import launched_ranks
    from cptron.train import stragglers
    from cptron.train.guards import Guards

    ranks = launched_ranks()
    assert ranks is not None
    forward, draw, begin = pipeline._forward, Guards.next_batches, stragglers.Stragglers.begin
    step = [0]

    def sleep() -> None:
        if ranks.rank == slow_rank and step[0] < until_step:
            time.sleep(sleep_s)

    def slow_forward(*words: Any, **named: Any) -> Any:
        if where == "forward":
            sleep()
        return forward(*words, **named)

    def slow_draw(self: Any) -> Any:
        if where == "data":
            sleep()
        return draw(self)

    def begin_and_count(self: Any, run: Any) -> float:
        step[0] = run.state.step
        return begin(self, run)

    pipeline._forward = slow_forward
    Guards.next_batches = slow_draw  # type: ignore[method-assign]
    stragglers.Stragglers.begin = begin_and_count  # type: ignore[method-assign]
    try:
        return train(config, overrides)
    finally:
        pipeline._forward = forward
        Guards.next_batches = draw  # type: ignore[method-assign]
        stragglers.Stragglers.begin = begin  # type: ignore[method-assign]


def own_time_of_a_wait(slow_rank: int, sleep_s: float) -> list[float]:
    """Own and waiting seconds of a rank, where `slow_rank` comes late to a collective."""
    import torch
    import torch.distributed as dist

    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.session import open_session
    from cptron.runtime.waits import OwnTime

    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, device="cpu", threads_per_rank=1):
        clock = OwnTime(torch.device("cpu"))
        before = dict(dist.ProcessGroup.__dict__)
        dist.barrier()
        clock.begin()
        if ranks.rank == slow_rank:
            time.sleep(sleep_s)
        dist.all_reduce(torch.ones(4))
        work = dist.all_reduce(torch.ones(4), async_op=True)
        work.wait()
        busy = clock.end()
        assert busy is not None and dict(dist.ProcessGroup.__dict__) == before
        assert clock.end() is None
        return [busy.own_s, busy.wait_s]
