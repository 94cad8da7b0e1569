"""The Phi-3 family: Phi-3, Phi-3.5, Phi-4, Phi-4-mini and others with `model_type: phi3`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture, LongRopeScaling
from cptron.model.families.config_fields import (
    NO_BIAS,
    NO_DROPOUT,
    reading,
    require,
    sizes,
    window_everywhere,
    write_sizes,
)
from cptron.model.families.family import Family
from cptron.model.families.rope_fields import Rope, read_rope, write_rope
from cptron.model.families.rules import EMBEDDING, FINAL_NORM, FUSED_ATTENTION, FUSED_MLP, OUTPUT, PRE_NORMS

_COMPUTED = {"hidden_act": "silu", "embd_pdrop": 0.0, "resid_pdrop": 0.0, **NO_BIAS, **NO_DROPOUT}
_ORIGINAL_CONTEXT = 4096


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Phi-3 config."""
    with reading("phi3"):
        require(config, "phi3", _COMPUTED)
        fields = sizes(config)
        # transformers reads this field beside the rotary ones first, and has a default for it
        stated = {"original_max_position_embeddings": _ORIGINAL_CONTEXT, "sliding_window": None, **config}
        rope = read_rope(stated, "phi3", kinds=("default", "longrope", "su"), partial=True)
        return Architecture(
            family="phi3",
            **fields,
            **window_everywhere(stated),
            rope_theta=rope.theta,
            rope_scaling=rope.scaling,
            rotary_dim=_rotary_dim(rope, fields),
        )


def _rotary_dim(rope: Rope, fields: Mapping[str, Any]) -> int | None:
    """Rotated channels of a head, None for all, and proof that the scaling has a divisor for each pair of them."""
    dim = int(fields["head_dim"] * rope.partial_factor)
    if dim < 2 or dim % 2:
        raise ConversionError(
            f"config.json has partial_rotary_factor={rope.partial_factor}, which rotates {dim} of "
            f"{fields['head_dim']} channels of a head; the number must be even and above 0; correct it"
        )
    if isinstance(rope.scaling, LongRopeScaling):
        for name in ("short_factor", "long_factor"):
            found = len(getattr(rope.scaling, name))
            if found != dim // 2:
                raise ConversionError(
                    f"config.json has {found} numbers in {name}, which must be {dim // 2}, one for each pair of "
                    "rotated channels; correct it"
                )
    return None if dim == fields["head_dim"] else dim


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Phi-3 config of an architecture."""
    scaling = arch.rope_scaling
    original = _ORIGINAL_CONTEXT
    if isinstance(scaling, LongRopeScaling):
        original = scaling.original_max_position_embeddings
    return {
        **write_sizes(arch, "phi3", "Phi3ForCausalLM"),
        **_COMPUTED,
        **write_rope(arch),
        "original_max_position_embeddings": original,
        "partial_rotary_factor": _share(arch),
        "sliding_window": arch.sliding_window,
    }


def _share(arch: Architecture) -> float:
    """The fraction of a head that gives back the number of rotated channels, though it is rounded down."""
    share = arch.rotated_channels / arch.head_dim
    return share if int(arch.head_dim * share) == arch.rotated_channels else math.nextafter(share, 1.0)


PHI3 = Family(
    model_type="phi3",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *FUSED_ATTENTION, *FUSED_MLP, FINAL_NORM),
    output_rule=OUTPUT,
    adaptable=("o_proj", "down_proj"),
)
