"""How many parameters each rank holds, and of how many of them it keeps gradients and optimizer state.

Place in the flow: memory and messages are counted from these. Invariant: made of the same rules as conversion, stage by
stage as `model.stages` cuts; so the numbers are those of the modules that `model.build` makes, exactly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cptron.config.schema import AdapterConfig, Config
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.families.family import TensorRule, size_of
from cptron.model.stages import layers_of
from cptron.model.vocab import padded_vocab_size
from cptron.runtime.topology import Layout


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters of one rank."""

    total: int
    """Those it computes with."""
    trained: int
    """Those with a gradient, and with optimizer state on some data parallel rank; adapters are among them."""


def held_by_stage(config: Config, arch: Architecture) -> tuple[Held, ...]:
    """What a tensor rank of each pipeline stage holds."""
    return _held_by_stage(arch, Layout.of(config.parallel), config.adapter, config.optim.frozen)


@functools.cache  # a search asks for the same few layouts thousands of times
def _held_by_stage(
    arch: Architecture, layout: Layout, adapter: AdapterConfig, frozen: tuple[str, ...]
) -> tuple[Held, ...]:
    return tuple(_held(arch, layout, adapter, frozen, stage) for stage in range(layout.pp))


def _held(
    arch: Architecture, layout: Layout, adapter: AdapterConfig, frozen: tuple[str, ...], stage: int
) -> Held:
    base = list(_of_stage(arch, layout, stage))
    total = sum(size for _, size in base)
    if adapter.kind != "none":
        adapters = _adapters_of_stage(adapter, arch, layout, stage)
        return Held(total + adapters, adapters)
    trained = sum(size for name, size in base if not any(fnmatchcase(name, pattern) for pattern in frozen))
    return Held(total, trained)


def names_of_model(config: Config, arch: Architecture) -> set[str]:
    """Names of the parameters of all stages, without adapters'."""
    layout = Layout.of(config.parallel)
    return {name for stage in range(layout.pp) for name, _ in _of_stage(arch, layout, stage)}


def trained_products(config: Config, arch: Architecture) -> float:
    """Part of the weights in matrix products, the output layer among them, that have gradients. An adapter's own are
    few, and count as none."""
    return _trained_products(arch, config.adapter.kind, config.optim.frozen)


@functools.cache
def _trained_products(arch: Architecture, adapter: str, frozen: tuple[str, ...]) -> float:
    if adapter != "none":
        return 0.0
    sizes = {
        name: size
        for name, size in _of_stage(arch, Layout(), 0)
        if arch.tied_embeddings or not name.startswith("embedding.")
    }
    trained = (
        size for name, size in sizes.items() if not any(fnmatchcase(name, pattern) for pattern in frozen)
    )
    return sum(trained) / sum(sizes.values())


def _of_stage(arch: Architecture, layout: Layout, stage: int) -> Iterator[tuple[str, int]]:
    """Names in the whole model, and sizes on a tensor rank, of what a stage holds."""
    first, last = stage == 0, stage == layout.pp - 1
    layers = _layers(arch, layout, stage)
    for rule in family_of(arch.family).rules_for(arch):
        size = rule_size(rule, arch, layout.tp)
        if "{layer}" in rule.megatron:
            for layer in layers:
                yield rule.megatron.format(layer=layer), size
        elif rule.megatron.startswith("embedding."):
            if first or (last and arch.tied_embeddings):  # the last stage has a copy for its output layer
                yield rule.megatron, size
        elif last:
            yield rule.megatron, size


def _layers(arch: Architecture, layout: Layout, stage: int) -> list[int]:
    chunks = range(layout.virtual_stages)
    return [layer for chunk in chunks for layer in layers_of(arch.num_layers, layout, stage, chunk)]


def rule_size(rule: TensorRule, arch: Architecture, tp: int) -> int:
    """Elements of one parameter on a tensor rank; the vocabulary is padded."""
    padded = padded_vocab_size(arch.vocab_size, tp)
    whole = sum(
        math.prod(padded if dim == "vocab" else size_of(dim, arch) for dim in shape) for shape in rule.shapes
    )
    return whole if rule.cut is None else whole // tp


def _adapters_of_stage(adapter: AdapterConfig, arch: Architecture, layout: Layout, stage: int) -> int:
    """Of the two matrices of an adapter the one on the cut side of the base matrix is cut, the other is whole on every
    tensor rank; a magnitude is cut with the rows."""
    rank, tp = adapter.rank, layout.tp
    hidden, ffn = arch.hidden_size, arch.ffn_hidden_size
    query, key_value = size_of("query", arch), size_of("key_value", arch)
    by_rows = {  # inputs are whole, outputs cut
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "gate_proj": (hidden, ffn),
        "up_proj": (hidden, ffn),
    }
    by_columns = {"o_proj": (query, hidden), "down_proj": (ffn, hidden)}
    of_layer = 0
    for target in adapter.targets:
        inputs, outputs = by_rows.get(target) or by_columns[target]
        if target in by_rows:
            outputs //= tp
        else:
            inputs //= tp
        of_layer += rank * (inputs + outputs) + (outputs if adapter.kind == "dora" else 0)
    return of_layer * len(_layers(arch, layout, stage))
