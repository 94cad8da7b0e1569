"""The SmolLM3 family, `model_type: smollm3`: some layers do not rotate queries and keys.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

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
from cptron.model.families.rope_fields import usual_rope, write_rope
from cptron.model.families.rules import ATTENTION, EMBEDDING, FINAL_NORM, MLP, OUTPUT, PRE_NORMS

_COMPUTED = {"hidden_act": "silu", "mlp_bias": False, **NO_BIAS, **NO_DROPOUT}


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face SmolLM3 config."""
    with reading("smollm3"):
        require(config, "smollm3", _COMPUTED)
        unrotated = _unrotated(config)
        return Architecture(
            family="smollm3",
            **sizes(config, tied=True),
            **usual_rope(config, "smollm3", theta=2e6),
            **_windows(config, unrotated),
            unrotated_layers=unrotated,
        )


def _unrotated(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers without rotation: those with a 0 in the list, or each at the end of an interval."""
    num_layers, rotates = int(config["num_hidden_layers"]), config.get("no_rope_layers")
    if rotates is None:
        every = int(config.get("no_rope_layer_interval", 4))
        return tuple(number for number in range(num_layers) if (number + 1) % every == 0)
    if len(rotates) < num_layers:
        raise ConversionError(
            f"config.json has no_rope_layers of {len(rotates)} layers, but num_hidden_layers={num_layers}; "
            "correct one of them"
        )
    return tuple(number for number in range(num_layers) if not rotates[number])


def _windows(config: Mapping[str, Any], unrotated: tuple[int, ...]) -> dict[str, Any]:
    """Windows are off unless turned on, then in the layers without rotation unless others are listed."""
    value = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    layers = windowed_layers(config, () if value is None else unrotated)
    return window(value, layers)


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face SmolLM3 config of an architecture."""
    return {
        **write_sizes(arch, "smollm3", "SmolLM3ForCausalLM"),
        **_COMPUTED,
        **write_rope(arch),
        "layer_types": write_layer_types(arch),
        "no_rope_layers": [int(number not in arch.unrotated_layers) for number in range(arch.num_layers)],
        "sliding_window": arch.sliding_window,
        "use_sliding_window": arch.sliding_window is not None,
    }


SMOLLM3 = Family(
    model_type="smollm3",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *ATTENTION, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
)
