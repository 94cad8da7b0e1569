"""Small random models of every family, made by `transformers` from the family's own config class."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH, VOCAB = 32, 300

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,  # no multiple of 128: padding columns must not matter
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": None,  # a row of the embedding that does not learn
    "bos_token_id": None,
    "eos_token_id": None,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.25, 3.0, 8.0],
}
"""For three pairs of channels: three quarters of a head of 8."""


@dataclass(frozen=True)
class FamilyCase:
    """A model, and how its documents are seen."""

    id: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    documents: bool = True
    reset: bool = False


def phi3(original: int) -> dict[str, Any]:
    """Changes that make a Phi-3 with LongRope beyond so many positions."""
    return {
        "rope_parameters": {**LONGROPE, "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        "original_max_position_embeddings": original,
    }


CASES = [
    FamilyCase("llama", "llama", {"head_dim": 16}),
    FamilyCase("mistral", "mistral", {"head_dim": 16, "sliding_window": 7}),
    FamilyCase(
        "qwen2",
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    FamilyCase("qwen3", "qwen3", {"head_dim": 16}),
    FamilyCase(
        "gemma3",
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
            "tie_word_embeddings": True,
        },
    ),
    FamilyCase("phi3", "phi3", {"sliding_window": 9}),
    FamilyCase("phi3-short", "phi3", phi3(WIDTH), documents=False),
    FamilyCase("phi3-long", "phi3", phi3(WIDTH - 1), documents=False),
    FamilyCase("phi3-reset", "phi3", phi3(WIDTH // 4), reset=True),
    FamilyCase("smollm3", "smollm3", {"no_rope_layer_interval": 3, "tie_word_embeddings": True}),
    FamilyCase("olmo2", "olmo2"),
]


def make_model(case: FamilyCase, directory: Path) -> None:
    """Save the model; biases and norms are drawn too, and so far from 0 and 1 that one that is left out shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(case.model_type, **{**SIZES, **case.changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
    model.save_pretrained(directory)
