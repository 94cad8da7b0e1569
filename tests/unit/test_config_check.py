"""Rules: brute force decides what is legal; messages must name values that are."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.config.check import check_config
from cptron.config.check_engine import check_shape
from cptron.config.schema import (
    Config,
    DataConfig,
    MilestoneConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    StartConfig,
    TrainConfig,
    ValidSetConfig,
)
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.stages import layers_of, stage_sizes
from cptron.runtime.topology import Layout

GOOD = Config(
    run=RunConfig(dir="runs/a"),
    start=StartConfig(checkpoint="base"),
    data=DataConfig(
        seq_length=64,
        sources=(
            SourceConfig(name="a", path="t/a", token_share=0.5),
            SourceConfig(name="b", path="t/b", token_share=2.0),
        ),
        valid=(ValidSetConfig(name="a", path="t/v"),),
    ),
    train=TrainConfig(steps=10, global_batch_size=8),
    optim=OptimConfig(lr=1e-4),
)

LOSS = "valid/a/loss_nats_per_token"
BEST = {
    "checkpoint__keep_best": 1,
    "checkpoint__best_metric": LOSS,
    "checkpoint__every_steps": 4,
    "eval__every_steps": 2,
}
"""Keep the best of what is evaluated at every save."""


def changed(**values: Any) -> Config:
    """GOOD with `section__field=value` changes."""
    config = GOOD
    for key, value in values.items():
        section, _, name = key.partition("__")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def source(**values: Any) -> SourceConfig:
    return dataclasses.replace(SourceConfig(name="a", path="p", token_share=1.0), **values)


def accepts(config: Config, world_size: int = 1) -> bool:
    try:
        check_config(config, world_size)
    except ConfigError:
        return False
    return True


MEGATRON = {"data__order": "megatron", "data__megatron_samples": 85, "data__megatron_consumed_samples": 5}
"""Just as many samples as 10 steps of 8 need after the 5 that were consumed."""


def test_a_good_configuration_passes() -> None:
    check_config(GOOD, 1)
    check_config(changed(**MEGATRON), 1)
    check_config(changed(data__valid=(), eval__at_start=False), 4)
    check_config(changed(start__mode="random", start__checkpoint="", model__architecture="tiny.json"), 8)
    check_config(changed(optim__warmup_steps=9, optim__decay_steps=10, optim__lr_min=1e-4), 1)


@given(
    tp=st.integers(1, 4),
    pp=st.integers(1, 4),
    world_size=st.integers(1, 16),
    micro=st.integers(1, 4),
    batch=st.integers(1, 64),
)
def test_layout_is_legal_exactly_when_ranks_and_batch_divide(
    tp: int, pp: int, world_size: int, micro: int, batch: int
) -> None:
    config = changed(
        parallel__tp=tp,
        parallel__pp=pp,
        parallel__sequence_parallel=False,
        train__micro_batch_size=micro,
        train__global_batch_size=batch,
    )
    fits = any(
        tp * pp * dp == world_size and any(micro * dp * n == batch for n in range(1, 65))
        for dp in range(1, 17)
    )
    assert accepts(config, world_size) == fits


@given(tp=st.integers(1, 8), cp=st.integers(1, 6), pp=st.integers(1, 6), world_size=st.integers(1, 40))
def test_the_world_message_offers_what_fits(tp: int, cp: int, pp: int, world_size: int) -> None:
    """The nearest numbers of ranks, and of each axis every size that the ranks can be divided into."""
    ranks = tp * cp * pp
    if world_size % ranks == 0:
        return
    with pytest.raises(ConfigError) as caught:
        check_config(changed(parallel__tp=tp, parallel__cp=cp, parallel__pp=pp), world_size)
    worlds, *axes = str(caught.value).rpartition("; use ")[2].split(", or parallel.")
    below = world_size // ranks * ranks
    assert worlds == (f"{below} or {below + ranks} ranks" if below else f"{ranks} ranks")
    offered = {axis[:2]: [int(n) for n in re.findall(r"\d+", axis)] for axis in axes}
    expected = {
        name: [n for n in range(1, world_size + 1) if world_size % (ranks // size * n) == 0]
        for name, size in (("tp", tp), ("cp", cp), ("pp", pp))
        if size > 1
    }
    assert offered == {name: legal for name, legal in expected.items() if legal}


@given(micro=st.integers(1, 5), world_size=st.integers(1, 6), batch=st.integers(1, 60))
def test_the_batch_message_lists_the_nearest_legal_sizes(micro: int, world_size: int, batch: int) -> None:
    sizes = [size for size in range(1, 100) if size % (micro * world_size) == 0]
    if batch in sizes:
        return
    with pytest.raises(ConfigError, match=r"train\.global_batch_size") as caught:
        check_config(changed(train__micro_batch_size=micro, train__global_batch_size=batch), world_size)
    listed = [int(n) for n in re.findall(r"\d+", str(caught.value).rpartition("use ")[2])]
    assert (
        listed == [size for size in sizes if size < batch][-1:] + [size for size in sizes if size > batch][:1]
    )


@given(
    tp=st.integers(1, 12),
    pp=st.integers(1, 12),
    heads=st.integers(1, 24),
    kv=st.integers(1, 12),
    layers=st.integers(1, 24),
)
def test_architecture_rules_agree_with_brute_force_and_list_all_that_is_legal(
    tp: int, pp: int, heads: int, kv: int, layers: int
) -> None:
    arch = architecture(num_attention_heads=heads, num_kv_heads=kv, ffn_hidden_size=24, num_layers=layers)
    legal_tp = [n for n in range(1, 13) if heads % n == kv % n == 24 % n == 0]
    legal_pp = [n for n in range(1, 25) if layers % n == 0]
    config = changed(parallel__tp=tp, parallel__pp=pp, parallel__sequence_parallel=False)
    if tp in legal_tp and pp in legal_pp:
        check_shape(arch, config)
        return
    with pytest.raises(ConfigError) as caught:
        check_shape(arch, config)
    listed = [
        int(n) for n in re.findall(r"\d+", str(caught.value).rpartition("use ")[2].partition(", or keep")[0])
    ]
    assert listed == (legal_pp if tp in legal_tp else legal_tp)


def architecture(**values: Any) -> Architecture:
    base = Architecture(
        family="llama",
        num_layers=4,
        hidden_size=96,
        ffn_hidden_size=192,
        num_attention_heads=12,
        num_kv_heads=3,
        head_dim=8,
        vocab_size=101,
        max_position_embeddings=128,
        norm_eps=1e-5,
        rope_theta=1e4,
    )
    return dataclasses.replace(base, **values)


def test_architecture_messages() -> None:
    with pytest.raises(ConfigError, match=r"^parallel.tp=4 must divide num_kv_heads=3; use 1 or 3$"):
        check_shape(architecture(), changed(parallel__tp=4))
    with pytest.raises(ConfigError, match=r"^parallel.pp=3 must divide num_layers=4; use 1, 2 or 4$"):
        check_shape(architecture(), changed(parallel__pp=3))
    with pytest.raises(ConfigError, match=r"use 1 or 5, or keep pp=3 with parallel.last_stage_layers=1"):
        check_shape(architecture(num_layers=5), changed(parallel__pp=3))
    with pytest.raises(ConfigError, match=r"data.seq_length=129 .* use at most 128"):
        check_shape(architecture(), changed(data__seq_length=129))
    check_shape(architecture(vocab_size=7), changed(parallel__tp=3, parallel__pp=4, data__seq_length=128))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm_placement": "sandwich"}, "norms placed sandwich"),
        ({"qk_norm": "projection", "norm_placement": "post"}, "norms placed post, norms of whole queries"),
        ({"zero_centered_norm": True}, "1 [+] weight"),
        ({"activation": "gelu_tanh"}, "the activation gelu_tanh"),
        ({"attention_scale": 0.1}, "an attention scale of 0.1"),
        ({"sliding_window": 127, "windowed_layers": (0,)}, "a sliding window of 127"),
        ({"unrotated_layers": (3,)}, "layers without rotation"),
        ({"sliding_window": 128, "windowed_layers": (0,), "rope_local_theta": 1e3}, "two rotary tables"),
    ],
)
def test_what_transformer_engine_would_leave_out_is_refused(values: dict[str, Any], message: str) -> None:
    arch = architecture(**values)
    check_shape(arch, changed(data__seq_length=128))
    with pytest.raises(ConfigError, match=f"^model.backend=te .*{message}.*; use model.backend=native$"):
        check_shape(arch, changed(model__backend="te", data__seq_length=128))


def test_what_transformer_engine_computes_is_not_refused() -> None:
    for values in (
        {"qkv_bias": True},
        {"qk_norm": "head"},
        {"rotary_dim": 4},
        {"embedding_scale": 3.0},
        {"sliding_window": 128, "windowed_layers": (0, 1)},  # no longer sequence is ever seen
    ):
        check_shape(architecture(**values), changed(model__backend="te", data__seq_length=128))


def test_adapters_beside_fused_matrices_are_refused() -> None:
    arch = architecture(family="phi3")
    with pytest.raises(
        ConfigError, match=r"has q_proj, .*up_proj, which a phi3 .*targets=\[o_proj,down_proj\]$"
    ):
        check_shape(arch, changed(adapter__kind="lora", data__seq_length=128))
    check_shape(
        arch, changed(adapter__kind="lora", adapter__targets=("o_proj", "down_proj"), data__seq_length=128)
    )


@given(
    layers=st.integers(1, 16),
    pp=st.integers(1, 5),
    first=st.integers(0, 6),
    last=st.integers(0, 6),
    vp=st.integers(1, 4),
)
def test_stages_agree_with_brute_force(layers: int, pp: int, first: int, last: int, vp: int) -> None:
    """A cut is legal exactly when stages of such sizes add up; then all chunks are the layers in order."""
    layout = Layout(pp=pp, first_stage_layers=first, last_stage_layers=last, virtual_stages=vp)
    fits = [
        sizes
        for each in range(1, layers + 1)
        for sizes in [[first or each, *[each] * (pp - 2), last or each] if pp > 1 else [each]]
        if sum(sizes) == layers and all(size % vp == 0 for size in sizes) and (pp > 1 or not (first or last))
    ]
    if not fits:
        with pytest.raises(ConfigError, match="; "):
            stage_sizes(layers, layout)
        return
    assert stage_sizes(layers, layout) == fits[0]
    held = [layers_of(layers, layout, stage, chunk) for chunk in range(vp) for stage in range(pp)]
    assert [layer for part in held for layer in part] == list(range(layers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel__tp": 0}, "parallel.tp=0 must be at least 1"),
        ({"runtime__straggler_every_steps": -1}, "runtime.straggler_every_steps=-1 must not be negative"),
        ({"runtime__straggler_factor": 1.0}, "runtime.straggler_factor=1.0 must be more than 1"),
        ({"parallel__virtual_stages": 2}, "parallel.virtual_stages=2 interleaves .* parallel.pp=1 has one"),
        (
            {"model__backend": "te", "fp8__recipe": "rowwise"},
            "fp8.recipe=rowwise is not offered by .*use none",
        ),
        (
            {"model__backend": "te", "fp8__recipe": "delayed", "fp8__without_hardware": "emulate"},
            "fp8.without_hardware=emulate is offered by model.backend=native only",
        ),
        ({"fp8__recipe": "delayed"}, "fp8.recipe=delayed is not offered .*; use none, tensorwise or rowwise"),
        ({"fp8__recipe": "tensorwise", "fp8__forward_dtype": "e5m2"}, "fp8.forward_dtype=e5m2 multiplies"),
        ({"fp8__param_gather": True}, "fp8.param_gather=True needs model.backend=te"),
        ({"model__backend": "te", "fp8__param_gather": True}, "but fp8.recipe=none; choose a recipe"),
        (
            {
                "model__backend": "te",
                "fp8__recipe": "tensorwise",
                "fp8__param_gather": True,
                "optim__name": "muon",
            },
            "optim.name=muon divides nothing",
        ),
        (
            {"model__backend": "te", "fp8__recipe": "delayed", "fp8__bf16_last_layers": 1},
            "keeps no layer in bf16, .* and fp8.bf16_last_layers=1; set them to 0",
        ),
        (
            {
                "model__backend": "te",
                "fp8__recipe": "delayed",
                "memory__recompute": "selective",
                "memory__recompute_modules": ("layernorm",),
            },
            "fp8.recipe=delayed cannot recompute layernorm",
        ),
        ({"memory__recompute_layers": 1}, "memory.recompute_layers=1 counts layers of memory.recompute=full"),
        (
            {"model__backend": "te", "adapter__kind": "lora"},
            "adapter.kind=lora is offered by model.backend=native",
        ),
        ({"memory__recompute_modules": ("layernorm",)}, "'layernorm'.* use core_attn or mlp"),
        ({"memory__recompute": "selective", "memory__recompute_modules": ()}, "name some, or use none"),
        ({"memory__offload_modules": ("mlp",)}, "memory.offload_modules has 'mlp'"),
        ({"memory__offload_modules": ("attn_proj",)}, "attn_proj without core_attn"),
        ({"memory__offload_modules": ("core_attn",), "memory__recompute": "full"}, "use one of the two"),
        (
            {"memory__offload_modules": ("core_attn",), "memory__recompute": "selective"},
            "memory.offload_modules has core_attn, of which",
        ),
        ({"memory__logits_chunk_tokens": -1}, "memory.logits_chunk_tokens=-1 must not be negative"),
        (
            {"adapter__kind": "lora", "adapter__targets": ("lm_head",)},
            "'lm_head', which is no matrix of a layer",
        ),
        ({"adapter__kind": "lora", "adapter__targets": ()}, "leaves adapter.kind=lora nothing to train"),
        ({"adapter__kind": "dora", "adapter__rank": 0}, "adapter.rank=0 and .*; use e.g. 16"),
        ({"train__steps": 0}, "train.steps=0 must be at least 1"),
        ({"data__seq_length": 0}, "data.seq_length=0 must be at least 1"),
        ({"train__micro_batch_size": -1}, "train.micro_batch_size=-1 must be at least 1"),
        ({"train__global_batch_size": 0}, "train.global_batch_size=0 must be at least 1"),
        ({"data__workers": 0}, "data.workers=0 must be at least 1"),
        ({"data__megatron_samples": -1}, "data.megatron_samples=-1 must not be negative"),
        ({"data__megatron_consumed_samples": -1}, "data.megatron_consumed_samples=-1 must not be negative"),
        ({**MEGATRON, "data__megatron_samples": 84}, "data.megatron_samples=84 must cover .*=5 .* = 80"),
        ({**MEGATRON, "data__packing": "best_fit"}, "data.order=megatron with data.packing=best_fit"),
        ({**MEGATRON, "data__sources": (source(max_epochs=1.0),)}, r"max_epochs of \['a'\] must follow"),
        ({"log__every_steps": 0}, "log.every_steps=0 must be at least 1"),
        ({"checkpoint__keep_last": -1}, "checkpoint.keep_last=-1 must not be negative"),
        ({"checkpoint__keep_every_tokens": -1}, "checkpoint.keep_every_tokens=-1 must not be negative"),
        ({"checkpoint__keep_best": -1}, "checkpoint.keep_best=-1 must not be negative"),
        (
            {"checkpoint__milestones": (MilestoneConfig(name="m", tokens=0),)},
            "milestones.m.tokens=0 must be at least 1",
        ),
        ({"checkpoint__milestones": (MilestoneConfig(name="a b", tokens=1),)}, "name='a b' must be letters"),
        ({"checkpoint__milestones": (MilestoneConfig(name="m", tokens=1),) * 2}, "name=m is used before"),
        (
            {"checkpoint__best_metric": LOSS},
            "best_metric=valid/a/loss_nats_per_token is only for checkpoint.keep_best",
        ),
        (
            {"checkpoint__keep_best": 1},
            "best_metric='' must be measured .* use valid/a/loss_nats_per_token or",
        ),
        (
            {**BEST, "checkpoint__best_metric": "valid/b/perplexity"},
            "best_metric=valid/b/perplexity must be measured",
        ),
        (
            {**BEST, "eval__every_steps": 3},
            "every_steps=4 must be a multiple of eval.every_steps=3 .* use 3 or",
        ),
        (
            {**BEST, "eval__every_steps": 0},
            "every_steps=4 must be a multiple of eval.every_steps=0 .* set both",
        ),
        ({**BEST, "checkpoint__every_steps": 0}, "every_steps=0 must be a multiple of eval.every_steps=2"),
        ({"start__gate_tolerance_nats": -1.0}, "start.gate_tolerance_nats=-1.0 must not be negative"),
        ({"run__dir": ""}, "run.dir='' must name the output directory"),
        ({"data__sources": ()}, "data.sources is empty"),
        ({"data__sources": (source(name="a b"),)}, "data.sources.0.name='a b' must be letters"),
        ({"data__sources": (source(name="a\n"),)}, "must be letters"),
        ({"data__sources": (source(), source())}, "data.sources.1.name=a is used before"),
        ({"data__sources": (source(token_share=0.0),)}, "data.sources.a.token_share=0.0 must be more than 0"),
        ({"data__sources": (source(path=""),)}, "data.sources.a.path='' must name token files"),
        ({"data__valid": (ValidSetConfig(name="", path="p"),)}, "data.valid.0.name='' must be letters"),
        (
            {"data__valid": (ValidSetConfig(name="v", path="p", max_tokens=-1),)},
            "max_tokens=-1 must not be negative",
        ),
        ({"data__valid": ()}, "eval.at_start=true but data.valid is empty.*set eval.at_start=false"),
        (
            {"data__valid": (), "eval__at_start": False, "eval__every_steps": 5},
            "eval.every_steps=5 but data.valid",
        ),
        ({"start__checkpoint": ""}, "start.checkpoint='' but start.mode=init_from"),
        ({"start__mode": "random", "start__checkpoint": ""}, "model.architecture='' but start.mode=random"),
        ({"start__mode": "random", "model__architecture": "x"}, "start.checkpoint=base would not be loaded"),
        ({"optim__lr": 0.0}, "optim.lr=0.0 must be more than 0"),
        ({"optim__lr_min": 1e-3}, "optim.lr_min=0.001 must be from 0 to optim.lr=0.0001"),
        ({"optim__warmup_steps": 10}, "optim.warmup_steps=10 .* use at most 9"),
        (
            {"optim__warmup_steps": 5, "optim__decay_steps": 5},
            "optim.decay_steps=5 must come after .* use at least 6",
        ),
        ({"optim__beta1": 1.0}, "optim.beta1=1.0 must be from 0 to below 1"),
        ({"optim__beta2": -0.1}, "optim.beta2=-0.1 must be from 0 to below 1"),
        ({"optim__eps": 0.0}, "optim.eps=0.0 must be more than 0"),
        ({"optim__clip_grad_norm": -1.0}, "optim.clip_grad_norm=-1.0 must not be negative"),
        ({"optim__weight_decay": -0.1}, "optim.weight_decay=-0.1 must not be negative"),
    ],
)
def test_each_broken_rule_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
        check_config(changed(**changes), 1)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_names_may_repeat_across_sources_and_validation_sets() -> None:
    assert {source.name for source in GOOD.data.sources} & {valid.name for valid in GOOD.data.valid} == {"a"}
    check_config(GOOD, 1)


@given(
    tp=st.integers(1, 4),
    cp=st.integers(1, 4),
    vp=st.integers(1, 3),
    sp=st.booleans(),
    seq=st.integers(1, 96),
    pp=st.integers(1, 3),
)
def test_sequences_and_batches_of_every_layout(
    tp: int, cp: int, vp: int, sp: bool, seq: int, pp: int
) -> None:
    """Legal exactly when every chunk of the zig-zag cut, and every tensor rank's part of it, is whole; the message
    names the nearest lengths that are."""
    config = changed(
        parallel__tp=tp,
        parallel__cp=cp,
        parallel__pp=pp,
        parallel__virtual_stages=vp,
        parallel__sequence_parallel=sp,
        data__seq_length=seq,
        train__global_batch_size=6,
    )
    unit = (2 * cp if cp > 1 else 1) * (tp if sp else 1)
    if seq % unit:
        with pytest.raises(ConfigError, match=rf"^data.seq_length={seq} must be a multiple of") as caught:
            check_config(config, tp * cp * pp)
        listed = [int(n) for n in re.findall(r"\d+", str(caught.value).rpartition("use ")[2])]
        assert listed and all(n % unit == 0 and abs(n - seq) < unit for n in listed)
        return
    assert accepts(config, tp * cp * pp) == (vp == 1 or pp > 1)


def test_engine_messages() -> None:
    """What a user meets most often, word for word."""
    with pytest.raises(
        ConfigError,
        match=r"^parallel.tp=2 \* parallel.cp=2 \* parallel.pp=1 = 4 must divide the world size 6; use 4 or 8 ranks, "
        r"or parallel.tp=1 or 3, or parallel.cp=1 or 3$",
    ):
        check_config(changed(parallel__tp=2, parallel__cp=2), 6)
    with pytest.raises(
        ConfigError, match=r"^data.seq_length=64 must be a multiple of 2 \* parallel.cp=3 = 6; use 60 or 66$"
    ):
        check_config(changed(parallel__cp=3, train__global_batch_size=6), 3)
    with pytest.raises(ConfigError, match=r"parallel.virtual_stages=2; use 4 or 8$"):
        check_config(changed(parallel__pp=4, parallel__virtual_stages=2, train__global_batch_size=6), 4)
    with pytest.raises(ConfigError, match="cuts rows, not documents, over context ranks"):
        check_config(changed(parallel__cp=2, model__backend="te"), 2)
    with pytest.raises(ConfigError, match="leaves no layer of 4 in FP8"):
        check_shape(architecture(), changed(fp8__recipe="tensorwise", fp8__bf16_first_layers=4))
    stages = {"parallel__pp": 2, "fp8__recipe": "tensorwise", "fp8__bf16_first_layers": 3}
    check_shape(architecture(), changed(**stages))
    with pytest.raises(ConfigError, match=r"at most num_layers=4 / parallel.pp=2 = 2 with model.backend=te"):
        check_shape(architecture(), changed(**stages, model__backend="te"))
    with pytest.raises(ConfigError, match=r"memory.recompute_layers=3 is more than the 2 layers"):
        check_shape(
            architecture(), changed(parallel__pp=2, memory__recompute="full", memory__recompute_layers=3)
        )


def test_keeping_the_best() -> None:
    """Where every save is evaluated; by either number of a validation set."""
    assert accepts(changed(**BEST))
    assert accepts(
        changed(**{**BEST, "checkpoint__best_metric": "valid/a/perplexity", "eval__every_steps": 4})
    )
