"""What the planner proposes is accepted by the trainer and fits; what it refuses comes with what would help."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import LLAMA3_8B, LLAMA3_70B, h100s, llama, recipe

from cptron.config.check import check_config
from cptron.config.check_engine import check_shape
from cptron.config.schema import Config
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.efficiency import BF16
from cptron.plan.gpus import GPUS
from cptron.plan.layouts import divisors, layouts, require_accepted, require_sound
from cptron.plan.memory import memory_of
from cptron.plan.search import search, tokens_per_step, weighted_stages, with_tokens
from cptron.plan.smallest import leanest, options, smallest_cluster
from cptron.runtime.topology import Layout, Topology


@st.composite
def small_models(draw: st.DrawFn) -> Architecture:
    """Of odd numbers of layers, heads and channels."""
    groups = draw(st.sampled_from([1, 2, 3, 4, 8]))
    heads = groups * draw(st.sampled_from([1, 2, 3]))
    return llama(
        num_layers=draw(st.integers(1, 14)),
        hidden_size=16 * draw(st.integers(1, 8)),
        ffn_hidden_size=draw(st.sampled_from([24, 48, 64, 96])),
        num_attention_heads=heads,
        num_kv_heads=groups,
        head_dim=16,
        vocab_size=draw(st.integers(2, 400)),
        tied_embeddings=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=25)
@given(
    arch=small_models(),
    gpus=st.sampled_from([1, 2, 4, 8, 24]),
    batch=st.sampled_from([8, 12, 48]),
    seq_length=st.sampled_from([48, 64, 100]),
    room_mib=st.sampled_from([2101, 2105, 4000]),
)
def test_every_proposal_passes_the_trainers_checks_and_fits(
    arch: Architecture, gpus: int, batch: int, seq_length: int, room_mib: int
) -> None:
    """Whatever the model, the batch and the number of GPUs; no proposal twice."""
    gpu = replace(GPUS["h100"], memory_gib=room_mib / 1024)
    cluster = Cluster(gpu=gpu, num_gpus=gpus, gpus_per_node=8)
    config = recipe(batch=batch, seq_length=seq_length)
    found = search(config, arch, cluster, BF16)
    for estimate in found.fitting:
        check_config(estimate.config, gpus)
        check_shape(arch, estimate.config)
        assert Topology(gpus, Layout.of(estimate.config.parallel)).dp >= 1
        assert memory_of(estimate.config, arch, gpus).total <= gpu.memory_bytes
        assert estimate.config.parallel.tp <= 8
        assert changes(config, estimate.config) <= {"parallel", "memory", "micro_batch_size"}
    assert all(estimate.memory.total > gpu.memory_bytes for estimate in found.too_large)
    proposals = Counter(estimate.config.parallel for estimate in found.fitting)
    assert len({estimate.config for estimate in found.fitting}) == sum(proposals.values())
    times = [estimate.seconds_per_token for estimate in found.fitting]
    assert times == sorted(times) and all(time > 0 for time in times)


def changes(before: Config, after: Config) -> set[str]:
    """Sections that differ, and keys of `train`."""
    names = [field.name for field in dataclasses.fields(before) if field.name != "train"]
    found = {name for name in names if getattr(before, name) != getattr(after, name)}
    train = [field.name for field in dataclasses.fields(before.train)]
    return found | {name for name in train if getattr(before.train, name) != getattr(after.train, name)}


def test_no_layout_is_forgotten() -> None:
    """Of a model of 12 layers on 8 GPUs: every combination of sizes that the trainer accepts with even stages."""
    arch = llama(num_layers=12, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_kv_heads=2)
    config, cluster = recipe(batch=16, seq_length=64), h100s(8)
    found = {
        one.parallel
        for group in layouts(config, arch, cluster)
        for one in group
        if not one.parallel.last_stage_layers
    }
    expected = set()
    for tp in divisors(8):
        for cp in divisors(8):
            for pp in range(1, 13):
                for virtual in range(1, 9):
                    parallel = replace(config.parallel, tp=tp, cp=cp, pp=pp, virtual_stages=virtual)
                    try:
                        require_accepted(replace(config, parallel=parallel), arch, 8)
                    except ConfigError:
                        continue
                    expected.add(parallel)
    assert found == expected and len(expected) > 10


def test_what_fits_without_recomputing_is_not_offered_with_it() -> None:
    """Recomputation costs time; it is proposed where memory asks for it only."""
    config = recipe(batch=128)
    found = search(config, LLAMA3_8B, h100s(8), BF16)
    chosen = Counter(
        (one.config.parallel, one.config.train.micro_batch_size)
        for one in found.fitting
        if one.config.memory.recompute == "none"
    )
    assert set(chosen.values()) == {1}
    again = [one for one in found.fitting if one.config.memory.recompute != "none"]
    assert again and not {(one.config.parallel, one.config.train.micro_batch_size) for one in again} & set(
        chosen
    )


def test_layouts_of_126_layers() -> None:
    """Llama 3.1 405B was cut into 16 stages with one layer less at both ends."""
    arch = replace(LLAMA3_70B, num_layers=126)
    cluster = h100s(128)
    config = recipe(batch=64)
    found = {
        (one.parallel.first_stage_layers, one.parallel.last_stage_layers)
        for group in layouts(config, arch, cluster)
        for one in group
        if one.parallel.pp == 16
    }
    assert (7, 7) in found and (0, 6) in found


def test_too_small_a_cluster_says_what_would_do() -> None:
    """70 billion parameters on 8 H100: the smallest number that fits does, one node less does not; and an option."""
    config, cluster = recipe(batch=128), h100s(8)
    assert not search(config, LLAMA3_70B, cluster, BF16).fitting
    smallest = smallest_cluster(config, LLAMA3_70B, cluster)
    assert smallest is not None
    count = int(smallest.change.split()[1])
    assert count > 8 and search(config, LLAMA3_70B, h100s(count), BF16).fitting
    assert not search(config, LLAMA3_70B, h100s(count - 8), BF16).fitting
    found = {remedy.change.split()[0]: remedy for remedy in options(config, LLAMA3_70B, cluster)}
    assert "adapter.kind=lora" in found
    for remedy in found.values():
        require_accepted(remedy.config, LLAMA3_70B, 8)


def test_the_leanest_is_the_leanest() -> None:
    """Of all accepted layouts."""
    config, cluster = recipe(batch=16, seq_length=1024), h100s(8)
    arch = replace(LLAMA3_8B, num_layers=4)
    lean = leanest(config, arch, cluster)
    assert lean is not None
    everything = [memory_of(one, arch, 8).total for group in layouts(config, arch, cluster) for one in group]
    assert lean[1].total == min(everything)


def test_stages_share_the_tokens() -> None:
    """By their ends in tokens, in the order of the recipe; sequence and batch are the stage's."""
    overrides = (
        "data.stages=[{until_tokens: 300000000}, {until_tokens: 500000000, seq_length: 16384}, "
        "{global_batch_size: 64}]",
    )
    config = with_tokens(recipe(overrides=overrides), 1e9)
    parts = weighted_stages(config)
    assert [round(part, 3) for _, part in parts] == [0.3, 0.2, 0.5]
    assert [staged.data.seq_length for staged, _ in parts] == [8192, 16384, 8192]
    assert parts[2][0].train.global_batch_size == 64
    assert config.train.steps * tokens_per_step(config) >= 1e9
    by_rate = (
        "optim.schedule=cosine",
        "data.stages=[{until_tokens: 300000000}, {until_lr_frac: 0.2}, {lr_scale: 0.5}]",
    )
    shares = [part for _, part in weighted_stages(with_tokens(recipe(overrides=by_rate), 1e9))]
    assert shares == pytest.approx([0.3, 0.35, 0.35], abs=0.01)


def test_a_wrong_recipe_is_said_once() -> None:
    """Not as the reason of every layout."""
    with pytest.raises(ConfigError, match="optim"):
        require_sound(recipe(overrides=("optim.eps=0",)), LLAMA3_8B)
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        require_sound(recipe(seq_length=2**20), LLAMA3_8B)
