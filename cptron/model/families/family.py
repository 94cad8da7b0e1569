"""What a model family declares: the shape of its config and how its tensors are named and laid out.

Place in the flow: used by `families.*` to declare and by `convert.weight_map` to act. Invariant: a rule is
its own inverse description; no family writes import and export code separately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cptron.model.architecture import Architecture

ADAPTABLE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Hugging Face names of the matrices of a layer, which adapters may stand beside."""


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One megatron-core parameter and the Hugging Face tensors it is made of.

    `{layer}` in names stands for the layer number over the whole model. `layout`:
    `same` copy; `qkv` query, key, value interleaved by key/value group; `gate_up` gate rows, then up rows;
    `vocab` rows padded to the padded vocabulary.
    """

    megatron: str
    hugging_face: tuple[str, ...]
    layout: Literal["same", "qkv", "gate_up", "vocab"] = "same"


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, declared."""

    model_type: str
    """`model_type` in the Hugging Face config."""
    read_config: Callable[[dict[str, Any]], Architecture]
    """Architecture of a Hugging Face config; raises `ConversionError` on what the engine does not compute."""
    rules: tuple[TensorRule, ...]
    """Tensors of an untied model."""
    output_rule: TensorRule
    """The output matrix, absent where embeddings are tied."""
    ignored: tuple[str, ...] = ()
    """Suffixes of Hugging Face tensors that hold no weights (stored rotary tables)."""

    def rules_for(self, arch: Architecture) -> tuple[TensorRule, ...]:
        """Rules that apply to this architecture."""
        return self.rules if arch.tied_embeddings else (*self.rules, self.output_rule)
