"""What the tests of shards run on warm ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from shard_files import save_shards

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import dist_checkpointing

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.parts import metadata, model_state
from cptron.checkpoint.sharded import load_shards, weight_checksums
from cptron.config.schema import OptimConfig
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim import registry
from cptron.optim.optimizer import build_optimizer, wrap_chunks
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout

State = dict[str, dict[str, torch.Tensor]]


@contextmanager
def engine(
    base: str, layout: Layout, precision: str, optim: OptimConfig
) -> Iterator[tuple[list[Any], list[Any], Any]]:
    """Bare chunks, wrapped chunks and optimizer, with numbers in weights and moments that differ everywhere."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(base)).arch
    with open_session(ranks, layout, threads_per_rank=1):
        bare = build_chunks(arch, layout, ModelOptions(precision=precision))  # type: ignore[arg-type]
        chunks = wrap_chunks(bare, overlap=False, optimizer=optim.name)
        optimizer = build_optimizer(optim, chunks, precision)  # type: ignore[arg-type]
        load_shards(Path(base) / checkpoint_layout.SHARDS, bare)
        optimizer.reload_model_params()
        yield bare, chunks, optimizer


@torch.no_grad()
def step_once(bare: list[Any], chunks: list[Any], optimizer: Any) -> None:
    """An update with gradients that depend on nothing but the element's value, so that all layouts agree."""
    for chunk in chunks:
        for param in chunk.parameters():
            if param.requires_grad:
                param.main_grad.copy_(param.float().sin())
    optimizer.prepare_grads()
    optimizer.step_with_ready_grads()
    for chunk in chunks:
        chunk.zero_grad_buffer()


def state_of(optimizer: Any) -> list[tuple[torch.Tensor, ...]]:
    """This rank's master weights and state, in the optimizer's order."""
    return [
        tuple(
            t.detach().clone()
            for t in (param, *(s for s in inner.state[param].values() if torch.is_tensor(s)))
        )
        for part in optimizer.chained_optimizers
        for inner in [part.optimizer]
        for group in inner.param_groups
        for param in group["params"]
    ]


def _spoil(bare: list[Any], optimizer: Any) -> None:
    with torch.no_grad():
        for chunk in bare:
            for param in chunk.parameters():
                param.fill_(torch.nan)
        for tensors in _live(optimizer):
            for tensor in tensors:
                tensor.fill_(torch.nan)


def _live(optimizer: Any) -> Iterator[tuple[torch.Tensor, ...]]:
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for param in group["params"]:
                state = part.optimizer.state[param]
                yield (param.data, *(t for t in state.values() if torch.is_tensor(t) and t.dim()))


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


def saved_and_loaded(
    base: str, shards: str, layout: Layout, precision: str, optim: OptimConfig
) -> dict[str, str]:
    """Save after a step, spoil everything, load: all is as it was. Returns checksums of the weights."""
    with engine(base, layout, precision, optim) as (bare, chunks, optimizer):
        step_once(bare, chunks, optimizer)
        before, weights = state_of(optimizer), [p.detach().clone() for c in bare for p in c.parameters()]
        save_shards(Path(shards), bare, optimizer)
        _spoil(bare, optimizer)
        load_shards(Path(shards), bare, optimizer)
        assert _same(before, state_of(optimizer))
        assert all(
            torch.equal(a, b) for a, b in zip(weights, [p for c in bare for p in c.parameters()], strict=True)
        )
        return weight_checksums(bare, bare[0].arch.vocab_size)


def loaded_by_megatron(base: str, shards: str, layout: Layout, precision: str, optim: OptimConfig) -> None:
    """megatron-core's own loader, under `layout`, makes of the shards what ours makes, weights and optimizer."""
    with engine(base, layout, precision, optim) as (bare, _, optimizer):
        load_shards(Path(shards), bare, optimizer)
        expected = state_of(optimizer), [p.detach().clone() for c in bare for p in c.parameters()]
        _spoil(bare, optimizer)
        state: dict[str, Any] = dict(model_state(bare, lambda name: True))
        only = state["model"] if len(bare) == 1 else dict(state)
        state["optimizer"] = optimizer.sharded_state_dict(only, is_loading=True, metadata=metadata())
        loaded = dist_checkpointing.load(state, shards)
        for name, chunk in zip([key for key in state if key != "optimizer"], bare, strict=True):
            chunk.load_state_dict(loaded[name], strict=False)
        # settings of the groups are not stored: the configuration has them
        settings = {key: value for key, value in state["optimizer"].items() if key != "param_state"}
        optimizer.load_state_dict({**settings, "param_state": loaded["optimizer"]["param_state"]})
        assert _same(expected[0], state_of(optimizer))
        assert all(
            torch.equal(a, b)
            for a, b in zip(expected[1], [p for c in bare for p in c.parameters()], strict=True)
        )


def undivided(base: str, shards: str, layout: Layout, precision: str, optim: OptimConfig) -> dict[str, str]:
    """`saved_and_loaded` with an AdamW whose state is not divided over data parallel ranks, as Muon's is not."""
    recipe = registry.RECIPES["muon"]
    adamw = registry.RECIPES["adamw"]
    registry.RECIPES["muon"] = lambda optim, found: replace(adamw(optim, found), sharded=False)
    try:
        return saved_and_loaded(base, shards, layout, precision, optim)
    finally:
        registry.RECIPES["muon"] = recipe
