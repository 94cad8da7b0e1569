"""Names under which parameters are stored, as Transformer Engine's layers and Megatron-LM name them.

Place in the flow: layer specs, conversion and checksums agree on it here; no torch. Invariant: either backend's name of
a parameter has the same stored name, and two parameters of a model have different ones.
"""

from __future__ import annotations

import re

STORED_PREFIXES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""Norms before a matrix product, as Transformer Engine's fused layers store them."""

_LAYER = re.compile(r"^(?P<path>decoder\.layers)\.(?P<number>\d+)\.(?P<rest>.+)$")


def stored_name(parameter: str) -> str:
    """The stored name of a parameter, with the layer's number in the whole model where it has one."""
    key, layer = stored_key(parameter)
    return key if layer is None else key.replace("decoder.layers.", f"decoder.layers.{layer}.", 1)


def stored_key(parameter: str) -> tuple[str, int | None]:
    """The key of a parameter in the shards, where all layers are one tensor, and its layer (None: not of a layer)."""
    found = _LAYER.match(parameter)
    if not found:
        return parameter, None
    rest = found["rest"]
    for ours, theirs in STORED_PREFIXES.items():
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
    return f"{found['path']}.{rest}", int(found["number"])
