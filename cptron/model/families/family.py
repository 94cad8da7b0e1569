"""What a model family declares: the shape of its config and how its tensors are named, shaped, laid out and cut.

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

Dim = Literal["vocab", "hidden", "query", "key_value", "query_key_value", "ffn", "gate_and_up", "head"]
"""A size of a Hugging Face tensor, by what it counts."""


def size_of(dim: Dim, arch: Architecture) -> int:
    """The number that `dim` stands for."""
    query, key_value = arch.num_attention_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    return {
        "vocab": arch.vocab_size,
        "hidden": arch.hidden_size,
        "query": query,
        "key_value": key_value,
        "query_key_value": query + 2 * key_value,
        "ffn": arch.ffn_hidden_size,
        "gate_and_up": 2 * arch.ffn_hidden_size,
        "head": arch.head_dim,
    }[dim]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One megatron-core parameter and the Hugging Face tensors it is made of.

    `{layer}` in names stands for the layer number over the whole model.
    """

    megatron: str
    hugging_face: tuple[str, ...]
    shapes: tuple[tuple[Dim, ...], ...]
    """Sizes of each Hugging Face tensor."""
    layout: Literal["same", "qkv", "fused_qkv", "gate_up", "vocab"] = "same"
    """`same` copy; `qkv` query, key, value interleaved by key/value group (`fused_qkv`: Hugging Face has the three in
    one tensor, one after the other); `gate_up` gate rows, then up rows (of two tensors, or of one that has both);
    `vocab` rows padded to the padded vocabulary."""
    cut: int | None = None
    """Dimension of the megatron-core tensor that is cut over tensor parallel ranks; None: every rank holds all."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, declared."""

    model_type: str
    """`model_type` in the Hugging Face config."""
    read_config: Callable[[dict[str, Any]], Architecture]
    """Architecture of a Hugging Face config; raises `ConversionError` on what the engine does not compute."""
    write_config: Callable[[Architecture], dict[str, Any]]
    """Hugging Face config of an architecture: all of its shape, nothing of training. `read_config` inverts it."""
    rules: tuple[TensorRule, ...]
    """Tensors of an untied model."""
    output_rule: TensorRule
    """The output matrix, absent where embeddings are tied."""
    adaptable: tuple[str, ...] = ADAPTABLE
    """Hugging Face matrices of a layer that adapters may stand beside: those that are no part of a fused one."""
    ignored: tuple[str, ...] = ()
    """Suffixes of Hugging Face tensors that hold no weights (stored rotary tables)."""

    def rules_for(self, arch: Architecture) -> tuple[TensorRule, ...]:
        """Rules that apply to this architecture."""
        return self.rules if arch.tied_embeddings else (*self.rules, self.output_rule)
