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


def _norm(ours: str, theirs: str) -> TensorRule:
    """A norm of the hidden states of each layer."""
    return TensorRule(f"{_OURS}.{ours}.weight", (f"{_THEIRS}.{theirs}.weight",), (("hidden",),))


PRE_NORMS = (
    _norm("input_layernorm", "input_layernorm"),
    _norm("pre_mlp_layernorm", "post_attention_layernorm"),
)
"""Norms before attention and before the MLP."""

POST_NORMS = (
    _norm("self_attention.linear_proj.post_layernorm", "post_attention_layernorm"),
    _norm("mlp.linear_fc2.post_layernorm", "post_feedforward_layernorm"),
)
"""Norms of what attention and the MLP add to the residual."""

SANDWICH_NORMS = (
    _norm("input_layernorm", "input_layernorm"),
    _norm("pre_mlp_layernorm", "pre_feedforward_layernorm"),
    *POST_NORMS,
)
"""Norms before and after both."""

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

FUSED_ATTENTION = (
    TensorRule(
        f"{_OURS}.self_attention.linear_qkv.weight",
        (f"{_THEIRS}.self_attn.qkv_proj.weight",),
        (("query_key_value", "hidden"),),
        layout="fused_qkv",
        cut=0,
    ),
    ATTENTION[1],
)
"""The same where query, key and value are one tensor."""

QKV_BIAS = TensorRule(
    f"{_OURS}.self_attention.linear_qkv.bias",
    tuple(f"{_THEIRS}.self_attn.{name}_proj.bias" for name in "qkv"),
    (("query",), ("key_value",), ("key_value",)),
    layout="qkv",
    cut=0,
)

HEAD_NORMS = tuple(
    TensorRule(
        f"{_OURS}.self_attention.{name}_layernorm.weight",
        (f"{_THEIRS}.self_attn.{name}_norm.weight",),
        (("head",),),
    )
    for name in "qk"
)
"""Norms of each head's query and key."""

PROJECTION_NORMS = (
    TensorRule(
        f"{_OURS}.self_attention.q_layernorm.weight",
        (f"{_THEIRS}.self_attn.q_norm.weight",),
        (("query",),),
        cut=0,
    ),
    TensorRule(
        f"{_OURS}.self_attention.k_layernorm.weight",
        (f"{_THEIRS}.self_attn.k_norm.weight",),
        (("key_value",),),
        cut=0,
    ),
)
"""Norms of all heads' queries, and keys, together."""

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

FUSED_MLP = (
    TensorRule(
        f"{_OURS}.mlp.linear_fc1.weight",
        (f"{_THEIRS}.mlp.gate_up_proj.weight",),
        (("gate_and_up", "hidden"),),
        layout="gate_up",
        cut=0,
    ),
    MLP[1],
)
"""The same where gate and up are one tensor."""
