"""Real configs of the Llama family, in the forms of transformers 4 and 5; what is not computed is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture, RopeScaling
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


def test_what_llama_2_leaves_unsaid() -> None:
    """transformers' defaults: as many key/value heads as heads, theta 10,000, untied."""
    arch = read_config(LLAMA2)
    assert (arch.num_kv_heads, arch.head_dim, arch.rope_theta, arch.tied_embeddings) == (
        32,
        128,
        10000.0,
        False,
    )


@pytest.mark.parametrize("config", [SMOLLM2, LLAMA32, LLAMA2])
def test_both_forms_are_the_same_model(config: dict[str, Any]) -> None:
    """Ours of the old form, ours of the new, and ours of what transformers itself makes of the old."""
    from transformers import LlamaConfig

    assert read_config(in_transformers_5_form(config)) == read_config(config)
    assert read_config(LlamaConfig(**config).to_dict()) == read_config(config)


def test_architecture_survives_json() -> None:
    """As it is stored in a checkpoint."""
    import json

    for config in (SMOLLM2, LLAMA32):
        arch = read_config(config)
        assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type 'longrope'"),
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


@pytest.mark.parametrize("model_type", ["gpt2", "mistral", "None", ""])
def test_an_unknown_family_is_refused(model_type: str) -> None:
    """With the families that there are."""
    with pytest.raises(ConversionError, match=r"not supported; supported: .*llama"):
        family_of(model_type)
