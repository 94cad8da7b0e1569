"""The OLMo 2 family, `model_type: olmo2`: norms behind attention and MLP, and of whole queries and keys.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import NO_BIAS, NO_DROPOUT, reading, require, sizes, write_sizes
from cptron.model.families.family import Family
from cptron.model.families.rope_fields import usual_rope, write_rope
from cptron.model.families.rules import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    MLP,
    OUTPUT,
    POST_NORMS,
    PROJECTION_NORMS,
)

_COMPUTED = {"hidden_act": "silu", **NO_BIAS, **NO_DROPOUT}


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face OLMo 2 config."""
    with reading("olmo2"):
        require(config, "olmo2", _COMPUTED)
        return Architecture(
            family="olmo2",
            **sizes(config),
            **usual_rope(config, "olmo2"),
            qk_norm="projection",
            norm_placement="post",
            rotation_in_fp32=True,
        )


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face OLMo 2 config of an architecture."""
    sizes_and_names = write_sizes(arch, "olmo2", "Olmo2ForCausalLM")
    return {**sizes_and_names, **_COMPUTED, **write_rope(arch)}


OLMO2 = Family(
    model_type="olmo2",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *POST_NORMS, *ATTENTION, *PROJECTION_NORMS, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
)
