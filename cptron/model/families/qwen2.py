"""The Qwen2 family: Qwen2, Qwen2.5 and others with `model_type: qwen2`.

Place in the flow: declared here, used by conversion through `families.FAMILIES`. Invariant: a config that the engine
would compute differently is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

from cptron.model.architecture import Architecture
from cptron.model.families.config_fields import NO_DROPOUT, reading, require, sizes, write_sizes
from cptron.model.families.family import Family
from cptron.model.families.qwen_windows import read_windows, write_windows
from cptron.model.families.rope_fields import usual_rope, write_rope
from cptron.model.families.rules import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    MLP,
    OUTPUT,
    PRE_NORMS,
    QKV_BIAS,
)

_COMPUTED = {"hidden_act": "silu", **NO_DROPOUT}


def read_config(config: dict[str, Any]) -> Architecture:
    """Architecture of a Hugging Face Qwen2 config."""
    with reading("qwen2"):
        require(config, "qwen2", _COMPUTED)
        rope = usual_rope(config, "qwen2")
        return Architecture(family="qwen2", **sizes(config), **rope, **read_windows(config), qkv_bias=True)


def write_config(arch: Architecture) -> dict[str, Any]:
    """The Hugging Face Qwen2 config of an architecture."""
    sizes_and_names = write_sizes(arch, "qwen2", "Qwen2ForCausalLM")
    return {**sizes_and_names, **_COMPUTED, **write_rope(arch), **write_windows(arch)}


QWEN2 = Family(
    model_type="qwen2",
    read_config=read_config,
    write_config=write_config,
    rules=(EMBEDDING, *PRE_NORMS, *ATTENTION, QKV_BIAS, *MLP, FINAL_NORM),
    output_rule=OUTPUT,
)
