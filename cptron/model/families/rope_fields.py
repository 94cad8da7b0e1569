"""Rotary fields of a Hugging Face config, read and written.

Place in the flow: building blocks of the `read_config` and `write_config` of `families.*`. Invariant: a field that is
missing, unknown, out of range or contradicted is refused; where transformers would take a default of its own, so is it
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from cptron.errors import ConversionError
from cptron.model.architecture import (
    Architecture,
    LinearScaling,
    LongRopeScaling,
    RopeScaling,
    Scaling,
    YarnScaling,
)

USUAL_KINDS = ("default", "llama3", "yarn")
"""Kinds of rotary embedding that every family can have."""

_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
"""Fields without which a kind of rotary embedding is not defined."""

_OPTIONAL = {
    "default": ("original_max_position_embeddings",),  # has no effect
    "linear": (),
    "llama3": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor"),
}

_ANY = ("rope_type", "rope_theta", "partial_rotary_factor")
"""Fields of every kind."""

_TOP = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""Rotary fields that some configs have beside `rope_scaling`, not in it."""

_NULLABLE = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""Fields that transformers takes as absent when they are null."""

_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "rope_theta": ("a number above 1", lambda value: value > 1),
    "partial_rotary_factor": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
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


class Rope(NamedTuple):
    """What a config says of its rotary embedding."""

    theta: float
    scaling: Scaling | None
    partial_factor: float
    """Share of a head's channels that is rotated."""


def read_rope(
    config: Mapping[str, Any],
    family: str,
    *,
    kinds: Sequence[str] = USUAL_KINDS,
    theta: float = 10000.0,
    partial: bool = False,
) -> Rope:
    """Theta, scaling and rotated share. `kinds`: those that the family can have; `theta`: what to say nothing of it
    means; `partial`: the family can rotate a part of each head."""
    fields = gathered(config)
    kind = fields.get("rope_type", "default")
    if kind not in kinds:
        raise ConversionError(
            f"config.json has rope_type {kind!r}, which is not supported for {family}; "
            f"supported: {', '.join(kinds)}"
        )
    kind = "longrope" if kind == "su" else kind  # the name it had first
    _check_names(fields, kind)
    if not partial and fields.get("partial_rotary_factor") not in (None, 1):
        raise ConversionError(
            f"config.json has partial_rotary_factor={fields['partial_rotary_factor']!r}; the {family} family "
            "supports only 1, the rotation of whole heads"
        )
    share = 1.0 if fields.get("partial_rotary_factor") is None else _number(fields, "partial_rotary_factor")
    found = Rope(_number(fields, "rope_theta", theta), None, share)
    match kind:
        case "linear":
            return found._replace(scaling=LinearScaling(linear_factor=_number(fields, "factor")))
        case "llama3":
            return found._replace(scaling=_llama3(fields))
        case "yarn":
            return found._replace(scaling=_yarn(fields))
        case "longrope":
            return found._replace(scaling=_longrope(fields, int(config["max_position_embeddings"])))
    return found


def usual_rope(config: Mapping[str, Any], family: str, theta: float = 10000.0) -> dict[str, Any]:
    """The rotary embedding of whole heads, as fields of `Architecture`."""
    found = read_rope(config, family, theta=theta)
    return {"rope_theta": found.theta, "rope_scaling": found.scaling}


def write_rope(arch: Architecture) -> dict[str, Any]:
    """Rotary fields as transformers 4 and 5 both read them."""
    scaling = arch.rope_scaling
    if scaling is None:
        return {"rope_theta": arch.rope_theta, "rope_scaling": None}
    match scaling:
        case LinearScaling():
            fields: dict[str, Any] = {"rope_type": "linear", "factor": scaling.linear_factor}
        case RopeScaling():
            fields = {"rope_type": "llama3", **asdict(scaling)}
        case YarnScaling():
            fields = {"rope_type": "yarn", **asdict(scaling)}
        case LongRopeScaling():
            lists = {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
            fields = {"rope_type": "longrope", **asdict(scaling), **lists}
    return {"rope_theta": arch.rope_theta, "rope_scaling": fields}


def gathered(config: Mapping[str, Any]) -> dict[str, Any]:
    """All rotary fields in one dict: of `rope_parameters` (transformers 5), `rope_scaling` (transformers 4) and the
    config itself. The two versions read a contradiction differently, so it is refused."""
    top = {key: config[key] for key in _TOP if key in config}
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


def _check_names(fields: Mapping[str, Any], kind: str) -> None:
    """Every field that the kind needs, and none that it does not know."""
    for key in _REQUIRED[kind]:
        if key not in fields:
            raise ConversionError(
                f"config.json lacks {key!r}, which rope_type {kind!r} needs; add it as the model was trained"
            )
    for key in fields:
        if key not in (*_ANY, *_REQUIRED[kind], *_OPTIONAL[kind]):
            raise ConversionError(
                f"config.json has {key}={fields[key]!r}, which rope_type {kind!r} does not know; remove it if the "
                "model was trained without it"
            )


def _number(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number that keeps the rule of its field; without a `default` it must be there."""
    value: Any = fields.get(key, default)
    rule, keeps_rule = _RULES[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and keeps_rule(value)):
        raise ConversionError(f"config.json has {key}={value!r}, which must be {rule}; correct it")
    return float(value)


def _llama3(fields: Mapping[str, Any]) -> RopeScaling:
    """The scaling of Llama 3.1."""
    low, high = (_number(fields, key) for key in ("low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise ConversionError(
            f"config.json has high_freq_factor={high}, which must be above low_freq_factor={low}; correct them"
        )
    return RopeScaling(
        factor=_number(fields, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=int(_number(fields, "original_max_position_embeddings")),
    )


def _yarn(fields: Mapping[str, Any]) -> YarnScaling:
    """The scaling of YaRN; null means the default, as in transformers."""
    fields = {key: value for key, value in fields.items() if value is not None or key not in _NULLABLE}
    fast, slow = _number(fields, "beta_fast", 32.0), _number(fields, "beta_slow", 1.0)
    if fast < slow:
        raise ConversionError(
            f"config.json has beta_fast={fast}, which must be at least beta_slow={slow}; correct them"
        )
    truncate = fields.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ConversionError(
            f"config.json has truncate={truncate!r}, which must be true or false; correct it"
        )
    factor = _number(fields, "factor")
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=int(_number(fields, "original_max_position_embeddings")),
        attention_factor=_number(fields, "attention_factor", _yarn_attention_factor(fields, factor)),
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
    )


def _yarn_attention_factor(fields: Mapping[str, Any], factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, YaRN), or the ratio of two such terms where the config weighs
    both (as DeepSeek-V2 does; one alone, or a zero, has no effect in transformers)."""
    mscale, all_dim = (_number(fields, key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if not (mscale and all_dim):
        mscale, all_dim = 1.0, 0.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * all_dim * math.log(factor) + 1.0)


def _longrope(fields: Mapping[str, Any], max_positions: int) -> LongRopeScaling:
    """The scaling of LongRope. The attention factor is the paper's where the config does not say: sqrt(1 + ln(how
    much longer) / ln(original context))."""
    fields = {key: value for key, value in fields.items() if value is not None}
    original = int(_number(fields, "original_max_position_embeddings"))
    longer = _number(fields, "factor") if "factor" in fields else max_positions / original
    usual = 1.0 if longer <= 1 else math.sqrt(1 + math.log(longer) / math.log(original))
    return LongRopeScaling(
        short_factor=_divisors(fields, "short_factor"),
        long_factor=_divisors(fields, "long_factor"),
        original_max_position_embeddings=original,
        attention_factor=_number(fields, "attention_factor", usual),
    )


def _divisors(fields: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = fields.get(key)
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        for value in values
    )
    if not numbers or not values:
        raise ConversionError(
            f"config.json has {key}={values!r}, which must be a list of numbers above 0; correct it"
        )
    return tuple(map(float, values))
