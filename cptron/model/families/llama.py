"""The Llama family: Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2 and others with `model_type: llama`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`; the example that a new family is
copied from. Invariant: a config that the engine would compute differently is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import NO_BIAS, NO_DROPOUT, reading, require, sizes, write_sizes
from cptron.model.families.family import Family
from cptron.model.families.rope_fields import usual_rope, write_rope
from cptron.model.families.rules import ATTENTION, EMBEDDING, FINAL_NORM, MLP, OUTPUT, PRE_NORMS

_COMPUTED = {"hidden_act": "silu", "mlp_bias": False, "pretraining_tp": 1, **NO_BIAS, **NO_DROPOUT}
"""What the engine computes; another value is refused, an absent one means this."""


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Llama config; `ConversionError` names a missing or unsupported field."""
    with reading("llama"):
        require(config, "llama", _COMPUTED)
        return Architecture(family="llama", **sizes(config), **usual_rope(config, "llama"))


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Llama config of an architecture."""
    sizes_and_names = write_sizes(arch, "llama", "LlamaForCausalLM")
    return {**sizes_and_names, **_COMPUTED, **write_rope(arch)}


LLAMA = Family(
    model_type="llama",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *ATTENTION, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
    ignored=("rotary_emb.inv_freq",),
)
