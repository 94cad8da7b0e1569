"""The sliding windows of Qwen2 and Qwen3: off unless the config turns them on, then in the layers after the first few.

Place in the flow: a building block of `families.qwen2` and `families.qwen3`. Invariant: `read_windows` inverts
`write_windows`, and reads what transformers computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import window, windowed_layers, write_layer_types


def read_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Architecture` that say which layers have a window."""
    on = bool(config.get("use_sliding_window", False)) and config["sliding_window"] is not None
    if not on:
        if windowed_layers(config, ()):
            raise ConversionError(
                f"config.json has sliding_attention among layer_types, but use_sliding_window="
                f"{config.get('use_sliding_window')!r} and sliding_window={config.get('sliding_window')!r} turn "
                "windows off; correct one of them"
            )
        return {}
    num_layers = int(config["num_hidden_layers"])
    listed = config.get("layer_types") is not None
    default = () if listed else range(max(0, min(int(config["max_window_layers"]), num_layers)), num_layers)
    return window(config["sliding_window"], windowed_layers(config, default))


def write_windows(arch: Architecture) -> dict[str, Any]:
    """What `read_windows` reads."""
    return {
        "use_sliding_window": arch.sliding_window is not None,
        "sliding_window": arch.sliding_window,
        "max_window_layers": min(arch.windowed_layers, default=arch.num_layers),
        "layer_types": write_layer_types(arch),
    }
