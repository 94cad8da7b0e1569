"""The Llama family: Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2 and others with `model_type: llama`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that
the engine would compute differently is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture, RopeScaling
from cptron.model.families.family import Family, TensorRule

_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
"""Config values the engine computes; a value that differs is refused (absent means the default, which is
this)."""


def _rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`
    (transformers 4)."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConversionError(f"rope_type {kind!r} is not supported for llama; supported: default, llama3")
    return theta, RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
    )


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Llama config; `ConversionError` names a missing or unsupported field."""
    for key, wanted in _REQUIRED.items():
        if config.get(key, wanted) != wanted:
            raise ConversionError(
                f"config.json has {key}={config[key]!r}; the llama family supports only {wanted!r}"
            )
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        theta, scaling = _rope(config)
        return Architecture(
            family="llama",
            num_layers=int(config["num_hidden_layers"]),
            hidden_size=hidden,
            ffn_hidden_size=int(config["intermediate_size"]),
            num_attention_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab_size=int(config["vocab_size"]),
            max_position_embeddings=int(config["max_position_embeddings"]),
            norm_eps=float(config["rms_norm_eps"]),
            rope_theta=theta,
            rope_scaling=scaling,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise ConversionError(
            f"config.json lacks {error.args[0]!r}, which a llama model needs; check the file"
        ) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConversionError(
            f"config.json has a value of the wrong kind ({error}); check the file"
        ) from None


LLAMA = Family(
    model_type="llama",
    read_config=read_config,
    rules=(
        TensorRule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocab"),
        TensorRule(
            "decoder.layers.{layer}.input_layernorm.weight", ("model.layers.{layer}.input_layernorm.weight",)
        ),
        TensorRule(
            "decoder.layers.{layer}.self_attention.linear_qkv.weight",
            (
                "model.layers.{layer}.self_attn.q_proj.weight",
                "model.layers.{layer}.self_attn.k_proj.weight",
                "model.layers.{layer}.self_attn.v_proj.weight",
            ),
            "qkv",
        ),
        TensorRule(
            "decoder.layers.{layer}.self_attention.linear_proj.weight",
            ("model.layers.{layer}.self_attn.o_proj.weight",),
        ),
        TensorRule(
            "decoder.layers.{layer}.pre_mlp_layernorm.weight",
            ("model.layers.{layer}.post_attention_layernorm.weight",),
        ),
        TensorRule(
            "decoder.layers.{layer}.mlp.linear_fc1.weight",
            ("model.layers.{layer}.mlp.gate_proj.weight", "model.layers.{layer}.mlp.up_proj.weight"),
            "gate_up",
        ),
        TensorRule(
            "decoder.layers.{layer}.mlp.linear_fc2.weight", ("model.layers.{layer}.mlp.down_proj.weight",)
        ),
        TensorRule("decoder.final_layernorm.weight", ("model.norm.weight",)),
    ),
    output_rule=TensorRule("output_layer.weight", ("lm_head.weight",), "vocab"),
    ignored=("rotary_emb.inv_freq",),
)
