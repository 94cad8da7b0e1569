"""Real configs of every family but Llama: what they mean, what of them is refused, and that they survive
transformers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture, LinearScaling, LongRopeScaling, YarnScaling
from cptron.model.families import FAMILIES, family_of

Config = dict[str, Any]


def config(model_type: str, sizes: tuple[int, ...], **fields: Any) -> Config:
    """Layers, hidden size, MLP width, heads, key/value heads, vocabulary and positions, and what else there is."""
    names = (
        *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size", "max_position_embeddings"),
    )
    return {
        "model_type": model_type,
        "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **dict(zip(names, sizes, strict=True)),
        **fields,
    }


SILU = {"hidden_act": "silu"}
MISTRAL_V01 = config(
    "mistral",
    (32, 4096, 14336, 32, 8, 32000, 32768),
    **SILU,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    sliding_window=4096,
    tie_word_embeddings=False,
)
MISTRAL_V03 = MISTRAL_V01 | {"vocab_size": 32768, "rope_theta": 1000000.0, "sliding_window": None}
NEMO = config(
    "mistral",
    (40, 5120, 14336, 32, 8, 131072, 1024000),
    **SILU,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=1000000.0,
    sliding_window=None,
    tie_word_embeddings=False,
)
QWEN25_7B = config(
    "qwen2",
    (28, 3584, 18944, 28, 4, 152064, 131072),
    **SILU,
    max_window_layers=28,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    sliding_window=131072,
    tie_word_embeddings=False,
    use_mrope=False,
    use_sliding_window=False,
)
QWEN25_05B = config(
    "qwen2",
    (24, 896, 4864, 14, 2, 151936, 32768),
    **SILU,
    max_window_layers=24,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    sliding_window=32768,
    tie_word_embeddings=True,
    use_sliding_window=False,
)
QWEN3_8B = config(
    "qwen3",
    (36, 4096, 12288, 32, 8, 151936, 40960),
    **SILU,
    attention_bias=False,
    head_dim=128,
    max_window_layers=36,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=None,
    tie_word_embeddings=False,
    use_sliding_window=False,
)
GEMMA3_1B = config(
    "gemma3_text",
    (26, 1152, 6912, 4, 1, 262144, 32768),
    attention_bias=False,
    attn_logit_softcapping=None,
    cache_implementation="hybrid",
    final_logit_softcapping=None,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-6,
    rope_local_base_freq=10000,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=512,
    sliding_window_pattern=6,
)
GEMMA3_LINEAR = GEMMA3_1B | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
"""As the text models of 4B and more have it."""
PHI4 = config(
    "phi3",
    (40, 5120, 17920, 40, 10, 100352, 16384),
    **SILU,
    attention_bias=False,
    embd_pdrop=0.0,
    original_max_position_embeddings=16384,
    resid_pdrop=0.0,
    rms_norm_eps=1e-5,
    rope_scaling=None,
    rope_theta=250000,
    sliding_window=None,
    tie_word_embeddings=False,
)
PHI3_MINI_4K = config(
    "phi3",
    (32, 3072, 8192, 32, 32, 32064, 4096),
    **SILU,
    attention_bias=False,
    embd_pdrop=0.0,
    original_max_position_embeddings=4096,
    resid_pdrop=0.0,
    rms_norm_eps=1e-5,
    rope_scaling=None,
    rope_theta=10000.0,
    sliding_window=2047,
    tie_word_embeddings=False,
)
SHORT = [round(1 + 0.03 * n, 4) for n in range(48)]
LONG = [round(1.05**n, 4) for n in range(48)]
PHI35_MINI = PHI3_MINI_4K | {
    "max_position_embeddings": 131072,
    "sliding_window": 262144,
    "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"},
}
PHI4_MINI = config(
    "phi3",
    (32, 3072, 8192, 24, 8, 200064, 131072),
    **SILU,
    attention_bias=False,
    embd_pdrop=0.0,
    full_attn_mod=1,
    original_max_position_embeddings=4096,
    partial_rotary_factor=0.75,
    resid_pdrop=0.0,
    rms_norm_eps=1e-5,
    rope_scaling={"long_factor": LONG, "short_factor": [1.0] * 48, "type": "longrope"},
    rope_theta=10000.0,
    sliding_window=262144,
    tie_word_embeddings=True,
)
SMOLLM3 = config(
    "smollm3",
    (36, 2048, 11008, 16, 4, 128256, 65536),
    **SILU,
    attention_bias=False,
    layer_types=["full_attention"] * 36,
    max_window_layers=28,
    mlp_bias=False,
    no_rope_layer_interval=4,
    no_rope_layers=[1, 1, 1, 0] * 9,
    pretraining_tp=2,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=5000000.0,
    sliding_window=None,
    use_sliding_window=False,
)
OLMO2_7B = config(
    "olmo2",
    (32, 4096, 11008, 32, 32, 100352, 4096),
    **SILU,
    attention_bias=False,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=500000,
    tie_word_embeddings=False,
)

EXPECTED: dict[str, tuple[Config, dict[str, Any]]] = {
    "Mistral-7B-v0.1": (MISTRAL_V01, {"sliding_window": 4096, "windowed_layers": tuple(range(32))}),
    "Mistral-7B-v0.3": (MISTRAL_V03, {"sliding_window": None, "head_dim": 128, "rope_theta": 1e6}),
    "Mistral-Nemo": (NEMO, {"head_dim": 128, "num_kv_heads": 8, "hidden_size": 5120}),
    "Qwen2.5-7B": (QWEN25_7B, {"qkv_bias": True, "sliding_window": None, "head_dim": 128}),
    "Qwen2.5-0.5B": (QWEN25_05B, {"qkv_bias": True, "tied_embeddings": True, "head_dim": 64}),
    "Qwen3-8B": (QWEN3_8B, {"qk_norm": "head", "qkv_bias": False, "head_dim": 128}),
    "gemma-3-1b": (
        GEMMA3_1B,
        {
            "tied_embeddings": True,
            "windowed_layers": tuple(n for n in range(26) if n % 6 != 5),
            "sliding_window": 512,
            "rope_theta": 1e6,
            "rope_local_theta": 1e4,
            "attention_scale": 1 / 16,
            "embedding_scale": math.sqrt(1152),
            "norm_placement": "sandwich",
            "zero_centered_norm": True,
            "qk_norm": "head",
            "activation": "gelu_tanh",
        },
    ),
    "gemma-3 with linear scaling": (GEMMA3_LINEAR, {"rope_scaling": LinearScaling(linear_factor=8.0)}),
    "Phi-4": (PHI4, {"rope_theta": 250000.0, "num_kv_heads": 10, "rope_scaling": None, "rotary_dim": None}),
    "Phi-3-mini-4k": (PHI3_MINI_4K, {"sliding_window": 2047, "head_dim": 96}),
    "Phi-3.5-mini": (
        PHI35_MINI,
        {
            "rope_scaling": LongRopeScaling(
                short_factor=tuple(SHORT),
                long_factor=tuple(LONG),
                original_max_position_embeddings=4096,
                attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
            )
        },
    ),
    "Phi-4-mini": (PHI4_MINI, {"rotary_dim": 96, "head_dim": 128, "tied_embeddings": True}),
    "SmolLM3-3B": (
        SMOLLM3,
        {"unrotated_layers": tuple(range(3, 36, 4)), "tied_embeddings": True, "sliding_window": None},
    ),
    "OLMo-2-7B": (OLMO2_7B, {"qk_norm": "projection", "norm_placement": "post", "rotation_in_fp32": True}),
}


def read(values: Config) -> Architecture:
    """By the family of its `model_type`."""
    return family_of(values["model_type"]).read_config(values)


@pytest.mark.parametrize("name", EXPECTED)
def test_real_configs(name: str) -> None:
    """What sets them apart; and they are stored as JSON, and written as configs that mean the same."""
    values, expected = EXPECTED[name]
    arch = read(values)
    assert {key: getattr(arch, key) for key in expected} == expected
    assert arch.norm_eps == values["rms_norm_eps"] and arch.num_layers == values["num_hidden_layers"]
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch
    assert read(json.loads(json.dumps(family_of(arch.family).write_config(arch)))) == arch


@pytest.mark.parametrize("name", EXPECTED)
def test_transformers_means_the_same(name: str) -> None:
    """What its own class makes of the file that models came with, and of the file that we write."""
    from transformers import AutoConfig

    values, _ = EXPECTED[name]
    arch = read(values)
    for form in (values, family_of(arch.family).write_config(arch)):
        copy = json.loads(json.dumps(form))
        theirs = AutoConfig.for_model(copy.pop("model_type"), **copy)
        assert read(json.loads(theirs.to_json_string(use_diff=False))) == arch


def test_defaults_of_architectures_are_those_of_old_checkpoints() -> None:
    """A manifest from before the other families."""
    old = {
        **{"family": "llama", "num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 12},
        **{"num_attention_heads": 4, "num_kv_heads": 2, "head_dim": 2, "vocab_size": 10},
        **{"max_position_embeddings": 16, "norm_eps": 1e-5, "rope_theta": 1e4},
        **{"rope_scaling": None, "tied_embeddings": False},
    }
    arch = Architecture.from_dict(old)
    assert arch == FAMILIES["llama"].read_config(FAMILIES["llama"].write_config(arch))
    assert arch.window_of(1) is None and arch.rotary_of(1) == "global" and arch.rotated_channels == 2


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 20}, range(20, 24)),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 99}, ()),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention"] * 12,
            },
            range(0, 24, 2),
        ),
        ({"use_sliding_window": True, "sliding_window": None}, ()),
    ],
)
def test_windows_of_qwen(change: Config, layers: Any) -> None:
    """Off, in the last layers, or where they are listed."""
    arch = read(QWEN25_05B | change)
    assert arch.windowed_layers == tuple(layers)
    assert arch.sliding_window == (64 if layers else None)


def test_smollm3_without_a_list_has_an_interval() -> None:
    """As its first configs; windows, where turned on, are those of the layers that do not rotate."""
    values = {key: value for key, value in SMOLLM3.items() if key not in ("no_rope_layers", "layer_types")}
    assert read(values) == read(SMOLLM3)
    arch = read(values | {"use_sliding_window": True, "sliding_window": 128})
    assert arch.windowed_layers == arch.unrotated_layers == tuple(range(3, 36, 4))
    assert arch.rotary_of(3) == "none" and arch.window_of(3) == 128 and arch.window_of(2) is None


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_qwen_with_yarn() -> None:
    """As its model card says for long contexts."""
    scaling = read(QWEN25_7B | {"rope_scaling": YARN}).rope_scaling
    assert isinstance(scaling, YarnScaling) and scaling.factor == 4.0


LONGROPE = PHI4_MINI["rope_scaling"]
REFUSED: list[tuple[Config, Config, str]] = [
    (MISTRAL_V01, {"hidden_act": "gelu"}, "hidden_act='gelu'; the mistral family"),
    (MISTRAL_V01, {"sliding_window": 0}, "sliding_window=0, which must be a whole number above 0"),
    (MISTRAL_V01, {"sliding_window": "4k"}, "sliding_window='4k'"),
    (MISTRAL_V01, {"layer_types": ["full_attention"] * 32}, "layer_types with .*remove layer_types"),
    (MISTRAL_V01, {"attention_dropout": 0.1}, "attention_dropout=0.1"),
    (
        MISTRAL_V01,
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "'linear', which is not supported for m",
    ),
    (QWEN25_7B, {"layer_types": ["sliding_attention"] * 28}, "use_sliding_window=False .* turn windows off"),
    (
        QWEN25_7B,
        {"layer_types": ["full_attention"] * 27},
        "layer_types of 27 layers, but num_hidden_layers=28",
    ),
    (QWEN25_7B, {"layer_types": ["chunked_attention"] * 28}, "'chunked_attention' among layer_types"),
    (QWEN25_7B, {"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope_type 'mrope'"),
    (QWEN3_8B, {"attention_bias": True}, "attention_bias=True; the qwen3 family"),
    (GEMMA3_1B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    (GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    (GEMMA3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    (GEMMA3_1B, {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    (GEMMA3_1B, {"sliding_window": None}, "sliding_window=None, which must be"),
    (GEMMA3_1B, {"query_pre_attn_scalar": 0.5}, "query_pre_attn_scalar=0.5, which must be a whole"),
    (GEMMA3_1B, {"rope_parameters": {"rope_type": "default"}}, r"rope_parameters of \['rope_type'\]"),
    (
        GEMMA3_1B,
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "'linear', which is not supported for the layers with a window",
    ),
    (PHI4, {"resid_pdrop": 0.1}, "resid_pdrop=0.1"),
    (PHI4, {"partial_rotary_factor": 0.7}, "rotates 89 of 128 channels"),
    (PHI4, {"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5, which must be a number above 0"),
    (
        PHI4_MINI,
        {"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 47}},
        "47 numbers in long_factor.* be 48",
    ),
    (PHI4_MINI, {"rope_scaling": {**LONGROPE, "short_factor": [0.0] * 48}}, "short_factor=.*numbers above 0"),
    (PHI4_MINI, {"rope_scaling": {**LONGROPE, "type": "yarn"}}, "rope_type 'yarn'"),
    (PHI4_MINI, {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 8}}, "must be the same"),
    (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers of 2 layers, but num_hidden_layers=36"),
    (SMOLLM3, {"mlp_bias": True}, "mlp_bias=True"),
    (SMOLLM3, {"layer_types": ["sliding_attention"] * 36}, "sliding_window=None, which must be"),
    (OLMO2_7B, {"attention_bias": True}, "attention_bias=True; the olmo2 family"),
]


@pytest.mark.parametrize(("base", "change", "message"), REFUSED, ids=lambda value: "")
def test_what_the_engine_does_not_compute_is_refused(base: Config, change: Config, message: str) -> None:
    """Value, rule and remedy on one line."""
    with pytest.raises(ConversionError, match=message) as error:
        read(base | change)
    assert "\n" not in str(error.value) and "; " in str(error.value)


@pytest.mark.parametrize(
    ("base", "key"),
    [
        (MISTRAL_V01, "sliding_window"),
        (QWEN3_8B, "head_dim"),
        (GEMMA3_1B, "head_dim"),
        (GEMMA3_1B, "query_pre_attn_scalar"),
        (PHI4, "rms_norm_eps"),
        (SMOLLM3, "vocab_size"),
        (OLMO2_7B, "hidden_size"),
    ],
)
def test_a_missing_field_is_named(base: Config, key: str) -> None:
    """transformers would fill in a number of another model."""
    with pytest.raises(ConversionError, match=f"lacks '{key}'"):
        read({name: value for name, value in base.items() if name != key})


def test_gemma_2_is_refused_with_the_reason() -> None:
    """By name."""
    with pytest.raises(ConversionError, match=r"'gemma2' is not supported \(its logits are capped"):
        family_of("gemma2")
