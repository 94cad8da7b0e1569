"""The text models of the Gemma 3 family, `model_type: gemma3_text`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import (
    NO_BIAS,
    NO_DROPOUT,
    reading,
    require,
    sizes,
    window,
    windowed_layers,
    write_layer_types,
    write_sizes,
)
from cptron.model.families.family import Family
from cptron.model.families.rope_fields import Rope, read_rope, write_rope
from cptron.model.families.rules import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    HEAD_NORMS,
    MLP,
    OUTPUT,
    SANDWICH_NORMS,
)

_COMPUTED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    **NO_BIAS,
    **NO_DROPOUT,
}
_KINDS = ("default", "linear", "llama3", "yarn")
_GLOBAL_THETA, _LOCAL_THETA = 1e6, 1e4


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Gemma 3 text config."""
    with reading("gemma3_text"):
        if config.get("use_bidirectional_attention") is None:  # null is false
            config = {**config, "use_bidirectional_attention": False}
        require(config, "gemma3_text", _COMPUTED)
        fields = {**sizes(config, tied=True), "head_dim": int(config["head_dim"])}
        every = config.get("sliding_window_pattern", 6)
        unlisted = [number for number in range(fields["num_layers"]) if (number + 1) % every]
        windows = window(config.get("sliding_window"), windowed_layers(config, unlisted))
        rope, local = _ropes(config)
        return Architecture(
            family="gemma3_text",
            **fields,
            **windows,
            rope_theta=rope.theta,
            rope_scaling=rope.scaling,
            rope_local_theta=local.theta if windows else None,
            qk_norm="head",
            activation="gelu_tanh",
            norm_placement="sandwich",
            zero_centered_norm=True,
            embedding_scale=math.sqrt(fields["hidden_size"]),
            attention_scale=_whole(config, "query_pre_attn_scalar") ** -0.5,
        )


def _ropes(config: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Of the layers that see everything, and of those with a window. transformers 5 has a dict for each, 4 has
    fields of other names for the second, which is never scaled."""
    new = config.get("rope_parameters") or {}
    unknown = sorted(new.keys() - {"full_attention", "sliding_attention"})
    if unknown:
        raise ConversionError(
            f"config.json has rope_parameters of {unknown}; a gemma3_text model has them for full_attention and "
            "sliding_attention; correct the file"
        )
    full = {key: config[key] for key in ("rope_theta", "rope_scaling") if key in config}
    local = {"rope_theta": config["rope_local_base_freq"]} if "rope_local_base_freq" in config else {}
    full["rope_parameters"], local["rope_parameters"] = (
        new.get("full_attention"),
        new.get("sliding_attention"),
    )
    return (
        read_rope(full, "gemma3_text", kinds=_KINDS, theta=_GLOBAL_THETA),
        read_rope(local, "the layers with a window of gemma3_text", kinds=("default",), theta=_LOCAL_THETA),
    )


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if value != int(value) or value < 1:
        raise ConversionError(
            f"config.json has {key}={value!r}, which must be a whole number above 0; correct it"
        )
    return int(value)


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Gemma 3 text config of an architecture."""
    assert arch.attention_scale is not None
    local = {} if arch.rope_local_theta is None else {"rope_local_base_freq": arch.rope_local_theta}
    return {
        **write_sizes(arch, "gemma3_text", "Gemma3ForCausalLM"),
        **_COMPUTED,
        **write_rope(arch),
        **local,
        "layer_types": write_layer_types(arch),
        "query_pre_attn_scalar": round(arch.attention_scale**-2),
        "sliding_window": arch.sliding_window,
    }


GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *SANDWICH_NORMS, *ATTENTION, *HEAD_NORMS, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
)
