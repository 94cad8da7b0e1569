"""A Llama so small that its tensors can be written out by hand, for unit tests."""

from __future__ import annotations

from cptron.model.architecture import Architecture

SMALL = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=4,
    num_kv_heads=2,
    head_dim=2,
    vocab_size=10,
    max_position_embeddings=16,
    norm_eps=1e-5,
    rope_theta=1e4,
)
