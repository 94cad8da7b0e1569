"""The Llama family: Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2 and others with `model_type: llama`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that
the engine would compute differently is refused, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture, RopeScaling, YarnScaling
from cptron.model.families.family import Family
from cptron.model.families.rules import ATTENTION, EMBEDDING, FINAL_NORM, MLP, OUTPUT, PRE_NORMS

_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
"""Config values the engine computes; a value that differs is refused (absent means the default, which is
this)."""


_ROPE_REQUIRED = {
    "default": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""Fields without which a kind of rotary embedding is not defined."""

_ROPE_OPTIONAL = {
    "default": ("original_max_position_embeddings",),  # has no effect
    "llama3": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}

_ROPE_ANY = ("rope_type", "rope_theta", "partial_rotary_factor")
"""Fields of every kind."""

_ROPE_TOP = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Rotary fields that some configs have beside `rope_scaling`, not in it."""

_YARN_NULLABLE = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""Fields that transformers takes as absent when they are null."""

_ROPE_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "rope_theta": ("a number above 1", lambda value: value > 1),
    "factor": ("a number of at least 1", lambda value: value >= 1),
    "original_max_position_embeddings": (
        "a whole number above 0",
        lambda value: value > 0 and value % 1 == 0,
    ),
    "low_freq_factor": ("a number above 0", lambda value: value > 0),
    "high_freq_factor": ("a number above 0", lambda value: value > 0),
    "attention_factor": ("a number above 0", lambda value: value > 0),
    "beta_fast": ("a number above 0", lambda value: value > 0),
    "beta_slow": ("a number above 0", lambda value: value > 0),
    "mscale": ("a number of at least 0", lambda value: value >= 0),
    "mscale_all_dim": ("a number of at least 0", lambda value: value >= 0),
}


def _rope(config: dict[str, Any]) -> tuple[float, RopeScaling | YarnScaling | None]:
    """Theta and scaling; every field that is missing, unknown or out of range is refused."""
    fields = _rope_fields(config)
    kind = fields.get("rope_type", "default")
    if kind not in _ROPE_REQUIRED:
        supported = ", ".join(_ROPE_REQUIRED)
        raise ConversionError(
            f"config.json has rope_type {kind!r}, which is not supported for llama; supported: {supported}"
        )
    for key in _ROPE_REQUIRED[kind]:
        if key not in fields:
            raise ConversionError(
                f"config.json lacks {key!r}, which rope_type {kind!r} needs; add it as the model was trained"
            )
    for key in fields:
        if key not in (*_ROPE_ANY, *_ROPE_REQUIRED[kind], *_ROPE_OPTIONAL[kind]):
            raise ConversionError(
                f"config.json has {key}={fields[key]!r}, which rope_type {kind!r} does not know; remove it if the "
                "model was trained without it"
            )
    if fields.get("partial_rotary_factor") not in (None, 1):
        raise ConversionError(
            f"config.json has partial_rotary_factor={fields['partial_rotary_factor']!r}; the llama family "
            "supports only 1, the rotation of whole heads"
        )
    theta = _rope_number(fields, "rope_theta", 10000.0)
    if kind == "default":
        return theta, None
    return theta, _llama3(fields) if kind == "llama3" else _yarn(fields)


def _rope_fields(config: dict[str, Any]) -> dict[str, Any]:
    """All rotary fields in one dict: of `rope_parameters` (transformers 5), `rope_scaling` (transformers 4) and the
    config itself. The two versions read a contradiction differently, so it is refused."""
    top = {key: config[key] for key in _ROPE_TOP if key in config}
    fields: dict[str, Any] = {}
    for where in ("rope_parameters", "rope_scaling", None):
        source = top if where is None else config.get(where) or {}
        if not isinstance(source, dict):
            raise ConversionError(
                f"config.json has {where}={source!r}, which must be an object; check the file"
            )
        for name, value in source.items():
            key = "rope_type" if name == "type" else name
            if fields.setdefault(key, value) != value:
                raise ConversionError(
                    f"config.json has {key}={value!r} and {key}={fields[key]!r}, which must be the same; keep the "
                    "one that the model was trained with"
                )
    return fields


def _rope_number(fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """A number that keeps the rule of its field; without a `default` it must be there."""
    value: Any = fields.get(key, default)
    rule, keeps_rule = _ROPE_RULES[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and keeps_rule(value)):
        raise ConversionError(f"config.json has {key}={value!r}, which must be {rule}; correct it")
    return float(value)


def _llama3(fields: dict[str, Any]) -> RopeScaling:
    """The scaling of Llama 3.1."""
    low, high = (_rope_number(fields, key) for key in ("low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise ConversionError(
            f"config.json has high_freq_factor={high}, which must be above low_freq_factor={low}; correct them"
        )
    return RopeScaling(
        factor=_rope_number(fields, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=int(_rope_number(fields, "original_max_position_embeddings")),
    )


def _yarn(fields: dict[str, Any]) -> YarnScaling:
    """The scaling of YaRN; null means the default, as in transformers."""
    fields = {key: value for key, value in fields.items() if value is not None or key not in _YARN_NULLABLE}
    fast, slow = _rope_number(fields, "beta_fast", 32.0), _rope_number(fields, "beta_slow", 1.0)
    if fast < slow:
        raise ConversionError(
            f"config.json has beta_fast={fast}, which must be at least beta_slow={slow}; correct them"
        )
    truncate = fields.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ConversionError(
            f"config.json has truncate={truncate!r}, which must be true or false; correct it"
        )
    factor = _rope_number(fields, "factor")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=int(_rope_number(fields, "original_max_position_embeddings")),
        attention_factor=_rope_number(fields, "attention_factor", _yarn_attention_factor(fields, factor)),
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
    )


def _yarn_attention_factor(fields: dict[str, Any], factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, YaRN), or the ratio of two such terms where the config weighs
    both (as DeepSeek-V2 does; one alone, or a zero, has no effect in transformers)."""
    mscale, all_dim = (_rope_number(fields, key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if not (mscale and all_dim):
        mscale, all_dim = 1.0, 0.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * all_dim * math.log(factor) + 1.0)


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
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConversionError(
            f"config.json has a value of the wrong kind ({error}); check the file"
        ) from None


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Llama config of an architecture."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.ffn_hidden_size,
        "max_position_embeddings": arch.max_position_embeddings,
        "mlp_bias": False,
        "num_attention_heads": arch.num_attention_heads,
        "num_hidden_layers": arch.num_layers,
        "num_key_value_heads": arch.num_kv_heads,
        "rms_norm_eps": arch.norm_eps,
        **_rope_config(arch),
        "tie_word_embeddings": arch.tied_embeddings,
        "vocab_size": arch.vocab_size,
    }


def _rope_config(arch: Architecture) -> dict[str, Any]:
    """Rotary fields as transformers 4 and 5 both read them."""
    scaling = arch.rope_scaling
    if scaling is None:
        return {"rope_theta": arch.rope_theta, "rope_scaling": None}
    kind = "llama3" if isinstance(scaling, RopeScaling) else "yarn"
    return {"rope_theta": arch.rope_theta, "rope_scaling": {"rope_type": kind, **asdict(scaling)}}


LLAMA = Family(
    model_type="llama",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *ATTENTION, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
    ignored=("rotary_emb.inv_freq",),
)
