"""Tensor rules that families share: the parts of a decoder layer as most Hugging Face models name them.

Place in the flow: building blocks of `families.*`. Invariant: one rule for one megatron-core parameter; a family that
names or lays out a part otherwise writes its own rule.
"""

from __future__ import annotations

from cptron.model.families.family import TensorRule

_THEIRS = "model.layers.{layer}"
_OURS = "decoder.layers.{layer}"

EMBEDDING = TensorRule(
    "embedding.word_embeddings.weight",
    ("model.embed_tokens.weight",),
    (("vocab", "hidden"),),
    layout="vocab",
    cut=0,
)
OUTPUT = TensorRule("output_layer.weight", ("lm_head.weight",), (("vocab", "hidden"),), layout="vocab", cut=0)
FINAL_NORM = TensorRule("decoder.final_layernorm.weight", ("model.norm.weight",), (("hidden",),))

PRE_NORMS = (
    TensorRule(f"{_OURS}.input_layernorm.weight", (f"{_THEIRS}.input_layernorm.weight",), (("hidden",),)),
    TensorRule(
        f"{_OURS}.pre_mlp_layernorm.weight", (f"{_THEIRS}.post_attention_layernorm.weight",), (("hidden",),)
    ),
)
"""Norms before attention and before the MLP."""

ATTENTION = (
    TensorRule(
        f"{_OURS}.self_attention.linear_qkv.weight",
        tuple(f"{_THEIRS}.self_attn.{name}_proj.weight" for name in "qkv"),
        (("query", "hidden"), ("key_value", "hidden"), ("key_value", "hidden")),
        layout="qkv",
        cut=0,
    ),
    TensorRule(
        f"{_OURS}.self_attention.linear_proj.weight",
        (f"{_THEIRS}.self_attn.o_proj.weight",),
        (("hidden", "query"),),
        cut=1,
    ),
)
"""Query, key, value and output matrices."""

MLP = (
    TensorRule(
        f"{_OURS}.mlp.linear_fc1.weight",
        (f"{_THEIRS}.mlp.gate_proj.weight", f"{_THEIRS}.mlp.up_proj.weight"),
        (("ffn", "hidden"), ("ffn", "hidden")),
        layout="gate_up",
        cut=0,
    ),
    TensorRule(
        f"{_OURS}.mlp.linear_fc2.weight",
        (f"{_THEIRS}.mlp.down_proj.weight",),
        (("hidden", "ffn"),),
        cut=1,
    ),
)
"""Gate, up and down matrices."""
