"""What the tests of the guards run on warm ranks: training that is cut off, and numbers that go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rank_calls
import torch

from cptron.optim.names import named_parameters
from cptron.runtime.session import Session
from cptron.train import proof, rollback
from cptron.train.guards import Guards


class Killed(BaseException):
    """Ends a rank where a kill would: nothing more is written, nobody is told."""


@contextmanager
def _replaced(name: str, method: Callable[..., Any]) -> Iterator[None]:
    before = getattr(Guards, name)
    setattr(Guards, name, method)
    try:
        yield
    finally:
        setattr(Guards, name, before)


def train_until_journalled(config: str, overrides: list[str]) -> str:
    """Train, and die on all ranks as soon as an action is in the journal and before it has any effect."""
    append = Guards._append

    def append_and_die(self: Guards, *words: Any, **options: Any) -> Any:
        append(self, *words, **options)
        raise Killed

    return _until(append_and_die, "_append", config, overrides)


def train_until_settled(config: str, overrides: list[str]) -> str:
    """Train, and die on all ranks as soon as a skip or a rollback has taken effect."""
    settle = Guards.settle

    def settle_and_die(self: Guards, *words: Any) -> bool:
        if settle(self, *words):
            return True
        raise Killed

    return _until(settle_and_die, "settle", config, overrides)


def _until(method: Callable[..., Any], name: str, config: str, overrides: list[str]) -> str:
    with _replaced(name, method):
        try:
            return f"not killed: {rank_calls.train(config, overrides).error}"
        except Killed:
            return "killed"


def train_with_fault(
    config: str, overrides: list[str], fault: str, name: str, rank: int, batch: int, value: float
) -> rank_calls.Outcome:
    """Train; from global batch `batch` on, the first time it is drawn, something of rank `rank` is `value`.

    `fault`: `weight` sets the first row of the parameter `name`. `gradient` sets one element of what flows back into
    the output of the module `name`, once.
    """
    draw, done = Guards.next_batches, []

    def draw_and_spoil(self: Guards) -> Any:
        batches, run = draw(self), self._run
        if run.state.batches_drawn == batch and not done:
            done.append(batch)
            if run.session.ranks.rank == rank:
                _weight(run.chunks, name, value) if fault == "weight" else _gradient(run.chunks, name, value)
        return batches

    with _replaced("next_batches", draw_and_spoil):
        return rank_calls.train(config, overrides)


def train_with_damage(
    config: str, overrides: list[str], batch: int, checkpoint: str
) -> tuple[rank_calls.Outcome, list[str]]:
    """Train; when global batch `batch` is drawn first, a file of `checkpoint` is lost, and the run has just evaluated
    the step of that checkpoint. Also the phases in which a checkpoint is proven."""
    draw, prove = Guards.next_batches, proof.proven_plan
    sessions: list[Session] = []
    phases: list[str] = []

    def draw_and_damage(self: Guards) -> Any:
        batches, run = draw(self), self._run
        if run.state.batches_drawn == batch and not sessions:
            sessions.append(run.session)
            (Path(checkpoint) / "state.json").unlink()
            run.evaluated = {"step": int(checkpoint[-8:]), "valid/stale/loss_nats_per_token": 1.0}
        return batches

    def prove_and_note(*words: Any) -> Any:
        phases.append(sessions[0].pace.entered[0])
        return prove(*words)

    rollback.proven_plan = prove_and_note
    try:
        with _replaced("next_batches", draw_and_damage):
            return rank_calls.train(config, overrides), phases
    finally:
        rollback.proven_plan = prove


def _weight(chunks: list[Any], name: str, value: float) -> None:
    with torch.no_grad():
        dict(named_parameters(chunks))[name][0] = value


def _gradient(chunks: list[Any], name: str, value: float) -> None:
    """`name` is that of the module in this rank's part of the model."""
    module = chunks[0].module.get_submodule(name)

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad.view(-1)[0] = value
        return grad

    def once(_: Any, __: Any, output: Any) -> None:
        handle.remove()
        (output[0] if isinstance(output, tuple) else output).register_hook(spoil)

    handle = module.register_forward_hook(once)
