"""The planner's formulas against the real engine: parameters and states to the byte, activations term by term."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_calls import allocated, saved
from plan_cases import TINY, recipe

from cptron.config.schema import AdapterConfig, Config, MemoryConfig
from cptron.model.architecture import Architecture
from cptron.plan.activations import input_of_layer, kept_by_layer
from cptron.plan.memory import static_bytes, tokens_of_micro_batch
from cptron.plan.parameters import held_by_stage
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

TIED = replace(TINY, tied_embeddings=True)
GEMMA = replace(
    TINY,
    family="gemma3_text",
    tied_embeddings=True,
    qk_norm="head",
    activation="gelu_tanh",
    norm_placement="sandwich",
    zero_centered_norm=True,
    embedding_scale=8.0,
)
LORA = AdapterConfig(kind="lora", rank=4)
DORA = AdapterConfig(kind="dora", rank=4, targets=("q_proj", "o_proj", "up_proj"))


def short(**others: Any) -> Config:
    """A recipe for rows that a test can afford."""
    return recipe(**{"seq_length": 64, "batch": 8, **others})


MORE = pytest.mark.more


@pytest.mark.parametrize(
    ("config", "arch", "ranks"),
    [
        pytest.param(short(), TINY, 2, marks=MORE),
        pytest.param(short(tp=2, pp=2), TIED, 4, marks=MORE),
        (short(tp=2, pp=2, overrides=("train.precision=fp32",)), GEMMA, 4),
        (short(pp=2, virtual_stages=2, cp=2, overrides=("optim.moments=bf16",)), TIED, 4),
        (short(pp=2, first_stage_layers=1, overrides=("optim.name=sgd",)), TINY, 4),
        (short(tp=2, overrides=('optim.frozen=["*word_embeddings*", "decoder.layers.0.*"]',)), TINY, 2),
        (replace(short(tp=2), adapter=LORA), TINY, 2),
        (replace(short(pp=2), adapter=DORA), TINY, 2),
    ],
    ids=[
        "dp2",
        "tp2-pp2-tied",
        "fp32-gemma",
        "interleaved-cp2-bf16-moments",
        "uneven-sgd",
        "frozen",
        "lora",
        "dora",
    ],
)
def test_weights_gradients_and_optimizer_to_the_byte(config: Config, arch: Architecture, ranks: int) -> None:
    """Of every rank; the optimizer's over the ranks that divide it, gradients but for the padding of their buffers."""
    found = run_ranks(allocated, ranks, config, arch)
    held = held_by_stage(config, arch)
    layout = Layout.of(config.parallel)
    shards = ranks // layout.tp // layout.pp
    for stage in range(layout.pp):
        members = [facts for facts in found if facts["stage"] == stage]
        weights, gradients, optimizer = static_bytes(config, held[stage], shards)
        assert len(members) == layout.tp * shards
        for facts in members:
            assert facts["weights"] == weights
            assert facts["trained"] == held[stage].trained
            assert gradients <= facts["gradients"] <= gradients + 4 * 2048
        assert sum(facts["optimizer"] for facts in members) == optimizer * len(members)


def kept(config: Config, arch: Architecture) -> float:
    """Bytes of one more layer, by the formula, where pointwise work is not fused."""
    layout = Layout.of(config.parallel)
    full = config.memory.recompute == "full"
    layer = input_of_layer(config, arch) if full else kept_by_layer(config, arch, fused=False)
    return tokens_of_micro_batch(config) * layer.on_rank(layout)


MEMORY = {
    "none": MemoryConfig(),
    "mlp": MemoryConfig(recompute="selective", recompute_modules=("mlp",)),
    "core_attn": MemoryConfig(recompute="selective", recompute_modules=("core_attn",)),
    "full": MemoryConfig(recompute="full"),
}


@pytest.mark.parametrize(
    ("recompute", "parallel", "ranks"),
    [
        pytest.param("none", {}, 1, marks=MORE),
        pytest.param("mlp", {}, 1, marks=MORE),
        pytest.param("core_attn", {}, 1, marks=MORE),
        pytest.param("full", {}, 1, marks=MORE),
        pytest.param("none", {"tp": 2}, 2, marks=MORE),
        pytest.param("none", {"tp": 2, "sequence_parallel": False}, 2, marks=MORE),
    ],
)
def test_a_layer_keeps_what_the_formula_says(recompute: str, parallel: dict[str, Any], ranks: int) -> None:
    """What autograd saves in four layers less what it saves in two, in bf16 on the CPU, within a hundredth."""
    config = replace(short(micro=2, **parallel), memory=MEMORY[recompute])
    four, two = (run_ranks(saved, ranks, config, replace(TINY, num_layers=layers))[0] for layers in (4, 2))
    assert (four - two) / 2 == pytest.approx(kept(config, TINY), rel=0.01)
