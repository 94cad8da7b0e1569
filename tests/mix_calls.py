"""What the tests of mixing run on warm ranks: training in which something other than a mixer sets new shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rank_calls

from cptron.train import loop
from cptron.train.data import asked_shares, reopen
from cptron.train.hooks import Action, Hook, Record
from cptron.train.setup import Run


class _Raises(Hook):
    """Doubles the share of a source after a step, on every rank, before the checkpoint of that step is saved."""

    def __init__(self, step: int, name: str) -> None:
        self._step, self._name = step, name

    def on_step(self, run: Run, record: Record) -> Action:
        if run.state.step == self._step:
            shares = asked_shares(run)
            reopen(run, shares | {self._name: 2 * shares[self._name]})
        return Action.CONTINUE


def train_and_raise(config: str, overrides: list[str], step: int, name: str) -> rank_calls.Outcome:
    """Train, with the share of source `name` doubled after `step`."""
    train = loop.train

    def train_with_hook(run: Run, hooks: Sequence[Hook], stop: Any) -> int:
        return train(run, [*hooks, _Raises(step, name)], stop)

    loop.train = train_with_hook
    try:
        return rank_calls.train(config, overrides)
    finally:
        loop.train = train
