"""The Mistral family: Mistral 7B, Mistral Nemo, Mistral Small and others with `model_type: mistral`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import (
    NO_DROPOUT,
    reading,
    require,
    sizes,
    window_everywhere,
    write_sizes,
)
from cptron.model.families.family import Family
from cptron.model.families.rope_fields import usual_rope, write_rope
from cptron.model.families.rules import ATTENTION, EMBEDDING, FINAL_NORM, MLP, OUTPUT, PRE_NORMS

_COMPUTED = {"hidden_act": "silu", **NO_DROPOUT}


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Mistral config. `sliding_window` must be there, be it null: without it
    transformers takes 4096, which later models of the family were not trained with."""
    with reading("mistral"):
        require(config, "mistral", _COMPUTED)
        rope = usual_rope(config, "mistral")
        return Architecture(family="mistral", **sizes(config), **rope, **window_everywhere(config))


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Mistral config of an architecture."""
    sizes_and_names = write_sizes(arch, "mistral", "MistralForCausalLM")
    return {**sizes_and_names, **_COMPUTED, **write_rope(arch), "sliding_window": arch.sliding_window}


MISTRAL = Family(
    model_type="mistral",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *ATTENTION, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
)
