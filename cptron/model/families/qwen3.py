"""The Qwen3 family: the dense models of `model_type: qwen3`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import NO_BIAS, NO_DROPOUT, reading, require, sizes, write_sizes
from cptron.model.families.family import Family
from cptron.model.families.qwen_windows import read_windows, write_windows
from cptron.model.families.rope_fields import usual_rope, write_rope
from cptron.model.families.rules import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    HEAD_NORMS,
    MLP,
    OUTPUT,
    PRE_NORMS,
)

_COMPUTED = {"hidden_act": "silu", **NO_BIAS, **NO_DROPOUT}


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Qwen3 config. `head_dim` must be there: without it transformers takes 128."""
    with reading("qwen3"):
        require(config, "qwen3", _COMPUTED)
        fields = {**sizes(config), "head_dim": int(config["head_dim"])}
        rope = usual_rope(config, "qwen3")
        return Architecture(family="qwen3", **fields, **rope, **read_windows(config), qk_norm="head")


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Qwen3 config of an architecture."""
    sizes_and_names = write_sizes(arch, "qwen3", "Qwen3ForCausalLM")
    return {**sizes_and_names, **_COMPUTED, **write_rope(arch), **write_windows(arch)}


QWEN3 = Family(
    model_type="qwen3",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *ATTENTION, *HEAD_NORMS, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
)
