"""Real configs of the Llama family, in the forms of transformers 4 and 5; what is not computed is refused."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture, RopeScaling, YarnScaling
from cptron.model.families import family_of
from cptron.model.families.llama import read_config

SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}
LLAMA32: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
LLAMA2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
}
"""As Llama 2 came: no number of key/value heads, no theta, nothing said of tied embeddings."""


ULTRALONG: dict[str, Any] = LLAMA32 | {
    "max_position_embeddings": 1048576,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 128.0,
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 8192,
    },
}
YARN: dict[str, Any] = ULTRALONG["rope_scaling"]
LLAMA3: dict[str, Any] = LLAMA32["rope_scaling"]


def in_transformers_5_form(config: dict[str, Any]) -> dict[str, Any]:
    """The same model as transformers 5 writes it."""
    new = {
        key: value
        for key, value in config.items()
        if key not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    return new | {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": config.get("rope_theta", 10000.0), **scaling},
    }


def test_smollm2() -> None:
    """Every field."""
    assert read_config(SMOLLM2) == Architecture(
        family="llama",
        num_layers=30,
        hidden_size=576,
        ffn_hidden_size=1536,
        num_attention_heads=9,
        num_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        max_position_embeddings=8192,
        norm_eps=1e-5,
        rope_theta=100000.0,
        rope_scaling=None,
        tied_embeddings=True,
    )


def test_llama_3_2_has_scaled_frequencies() -> None:
    """All four numbers of the rule."""
    arch = read_config(LLAMA32)
    assert (arch.num_kv_heads, arch.head_dim, arch.rope_theta, arch.tied_embeddings) == (
        8,
        64,
        500000.0,
        True,
    )
    assert arch.rope_scaling == RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )


def test_ultralong_has_yarn_with_its_own_betas() -> None:
    """The attention factor is the paper's where the config does not say."""
    assert read_config(ULTRALONG).rope_scaling == YarnScaling(
        factor=128.0,
        original_max_position_embeddings=8192,
        attention_factor=0.1 * math.log(128.0) + 1.0,
        beta_fast=4.0,
        beta_slow=1.0,
        truncate=True,
    )


@pytest.mark.parametrize(
    ("change", "attention_factor"),
    [
        ({}, 0.1 * math.log(128.0) + 1.0),
        ({"attention_factor": 0.5}, 0.5),
        ({"attention_factor": 2, "mscale": 1.0, "mscale_all_dim": 0.5}, 2.0),
        ({"attention_factor": None, "beta_fast": None, "beta_slow": None}, 0.1 * math.log(128.0) + 1.0),
        ({"mscale": 0.5}, 0.1 * math.log(128.0) + 1.0),
        ({"mscale": 0.5, "mscale_all_dim": 0.0}, 0.1 * math.log(128.0) + 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        (
            {"mscale": 2.0, "mscale_all_dim": 0.5},
            (0.2 * math.log(128.0) + 1.0) / (0.05 * math.log(128.0) + 1.0),
        ),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_attention_factor_of_yarn_is_resolved(change: dict[str, Any], attention_factor: float) -> None:
    """As transformers resolves it: said, from both weights, or from the factor alone."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = SMOLLM2 | {"rope_scaling": YARN | change}
    scaling = read_config(config).rope_scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.attention_factor == pytest.approx(attention_factor, rel=1e-15)
    assert scaling.attention_factor == ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**copy.deepcopy(config)))[1]


def test_what_llama_2_leaves_unsaid() -> None:
    """transformers' defaults: as many key/value heads as heads, theta 10,000, untied."""
    arch = read_config(LLAMA2)
    assert (arch.num_kv_heads, arch.head_dim, arch.rope_theta, arch.tied_embeddings) == (
        32,
        128,
        10000.0,
        False,
    )


@pytest.mark.parametrize("config", [SMOLLM2, LLAMA32, LLAMA2, ULTRALONG])
def test_both_forms_are_the_same_model(config: dict[str, Any]) -> None:
    """Ours of the old form, ours of the new, and ours of what transformers itself makes of the old (of a copy: it
    writes into its argument)."""
    from transformers import LlamaConfig

    assert read_config(in_transformers_5_form(config)) == read_config(config)
    assert read_config(LlamaConfig(**copy.deepcopy(config)).to_dict()) == read_config(config)


def test_architecture_survives_json() -> None:
    """As it is stored in a checkpoint."""
    for config in (SMOLLM2, LLAMA32, ULTRALONG):
        arch = read_config(config)
        assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


def test_scaling_of_the_first_checkpoints_is_still_read() -> None:
    """Four numbers without the name of the rule: Llama 3's, stored so to this day."""
    arch = read_config(LLAMA32)
    stored = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert arch.to_dict()["rope_scaling"] == stored
    assert Architecture.from_dict({**arch.to_dict(), "rope_scaling": stored}) == arch
    for damaged in ({**stored, "beta_fast": 1.0}, {"factor": 32.0}, {**stored, "unknown": 1}, 3, [1]):
        with pytest.raises(TypeError):
            Architecture.from_dict({**arch.to_dict(), "rope_scaling": damaged})


@settings(deadline=None, max_examples=100)
@given(
    theta=st.floats(1.5, 1e9),
    factor=st.floats(1.0, 1000.0),
    context=st.integers(1, 1 << 20),
    attention_factor=st.none() | st.floats(0.01, 10.0),
    betas=st.tuples(st.floats(0.1, 4.0), st.floats(4.0, 64.0)),
    truncate=st.booleans(),
)
def test_yarn_survives_transformers_and_the_checkpoint(
    theta: float,
    factor: float,
    context: int,
    attention_factor: float | None,
    betas: tuple[float, float],
    truncate: bool,
) -> None:
    """transformers 4's form, 5's form, the file that transformers writes, and our JSON: one architecture."""
    from transformers import LlamaConfig

    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": context,
        "attention_factor": attention_factor,
        "beta_slow": betas[0],
        "beta_fast": betas[1],
        "truncate": truncate,
    }
    config = SMOLLM2 | {"rope_theta": theta, "rope_scaling": scaling}
    arch = read_config(config)
    assert arch.rope_theta == theta
    assert read_config(in_transformers_5_form(config)) == arch
    assert read_config(json.loads(LlamaConfig(**copy.deepcopy(config)).to_json_string())) == arch
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


@pytest.mark.parametrize(
    "config",
    [
        LLAMA32 | {"rope_scaling": {**LLAMA3, "type": "llama3"}},
        LLAMA32
        | {"rope_scaling": {"type": "llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_type"}}},
        LLAMA32 | {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        LLAMA32 | {"rope_scaling": {**LLAMA3, "partial_rotary_factor": 1.0}},
        LLAMA32 | {"original_max_position_embeddings": 8192, "partial_rotary_factor": None},
    ],
)
def test_saying_the_same_twice_is_no_contradiction(config: dict[str, Any]) -> None:
    """Files that were written for several versions of transformers."""
    assert read_config(config) == read_config(LLAMA32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 1.0}, "rope_theta=1.0, which must be a number above 1"),
        ({"rope_theta": None}, "rope_theta=None, which must be a number above 1"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4', which must be"),
        ({"rope_theta": math.nan}, "rope_theta=nan, which must be"),
        ({"rope_scaling": {"factor": 8.0}}, "factor=8.0, which rope_type 'default' does not know"),
        ({"rope_scaling": {"rope_type": None}}, "rope_type None"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type \['yarn'\]"),
        ({"rope_scaling": {**YARN, "type": "llama3"}}, "which must be the same"),
        ({"rope_scaling": {**YARN, "rope_theta": 5e5}}, "rope_theta=100000 and .*which must be the same"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 4096}, "must be the same"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "must be the same"),
        ({"rope_scaling": YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {**YARN, "finetuned": True}}, "finetuned=True, which rope_type 'yarn' does not"),
        ({"rope_scaling": {**YARN, "low_freq_factor": 1.0}}, "low_freq_factor=1.0, which rope_type 'yarn'"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "factor=0.5, which must be a number of at least 1"),
        ({"rope_scaling": {**YARN, "factor": None}}, "factor=None, which must be"),
        ({"rope_scaling": {**YARN, "factor": True}}, "factor=True, which must be"),
        ({"rope_scaling": {**YARN, "factor": math.inf}}, "factor=inf, which must be"),
        ({"rope_scaling": {**YARN, "factor": 10**400}}, r"config\.json"),
        ({"rope_scaling": {**YARN, "attention_factor": 0.0}}, "attention_factor=0.0, which must be"),
        ({"rope_scaling": {**YARN, "beta_fast": 0}}, "beta_fast=0, which must be a number above 0"),
        ({"rope_scaling": {**YARN, "beta_slow": 5}}, "beta_fast=4.0, which must be at least beta_slow=5.0"),
        ({"rope_scaling": {**YARN, "mscale": -1}}, "mscale=-1, which must be"),
        ({"rope_scaling": {**YARN, "truncate": None}}, "truncate=None, which must be true or false"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 8.5}}, "=8.5, which must be a whole"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "must be above low_freq_factor=1.0"),
        ({"rope_scaling": {**LLAMA3, "beta_fast": 4}}, "beta_fast=4, which rope_type 'llama3' does not know"),
    ],
)
def test_a_rotary_field_out_of_its_rule_is_refused(change: dict[str, Any], message: str) -> None:
    """transformers only warns, or takes another value; here value, rule and remedy are said, on one line."""
    with pytest.raises(ConversionError, match=message) as error:
        read_config(SMOLLM2 | change)
    assert "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize(("form", "key"), [(form, key) for form in (YARN, LLAMA3) for key in form])
def test_a_missing_rotary_field_is_named(form: dict[str, Any], key: str) -> None:
    """Those that have a default of the paper's may be absent; the others are not guessed."""
    config = SMOLLM2 | {"rope_scaling": {name: value for name, value in form.items() if name != key}}
    if key in ("beta_fast", "beta_slow"):
        defaults = {"beta_fast": 32.0, "beta_slow": 1.0}
        assert getattr(read_config(config).rope_scaling, key) == defaults[key]
        return
    with pytest.raises(ConversionError, match=f"lacks '{key}'|does not know"):
        read_config(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "lacks 'original_max_position_embeddings'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e5}}, "rope_type 'longrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks 'low_freq_factor'"),
    ],
)
def test_what_the_engine_does_not_compute_is_refused(change: dict[str, Any], message: str) -> None:
    """By name and value, on one line."""
    with pytest.raises(ConversionError, match=message) as error:
        read_config(SMOLLM2 | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
    ],
)
def test_a_missing_field_is_named(key: str) -> None:
    """transformers would fill in the numbers of Llama 2 7B; here nothing is guessed."""
    config = {name: value for name, value in SMOLLM2.items() if name != key}
    with pytest.raises(ConversionError, match=f"lacks '{key}'"):
        read_config(config)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"num_hidden_layers": "two"},
        {"num_attention_heads": 0},
        {"rope_scaling": [8.0]},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(change: dict[str, Any]) -> None:
    """A damaged config is an error of the user, not a traceback."""
    with pytest.raises(ConversionError, match=r"config\.json"):
        read_config({key: value for key, value in SMOLLM2.items() if key != "head_dim"} | change)


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "None", ""])
def test_an_unknown_family_is_refused(model_type: str) -> None:
    """With the families that there are, and the file to begin another with."""
    with pytest.raises(
        ConversionError, match=r"not supported.*; supported: .*llama.*copy cptron/\S+/llama\.py"
    ):
        family_of(model_type)
