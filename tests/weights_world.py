"""Hugging Face directories of a tiny Llama for tests of `cptron/weights`, and exact arithmetic to hold them against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokens_world import save_byte_tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_FORMATS = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}
"""Bits of the mantissa, smallest normal exponent."""


def llama(seed: int, dtype: torch.dtype = torch.float32, tied: bool = False) -> dict[str, torch.Tensor]:
    """Random weights of CONFIG, every row of the embedding of RMS about one."""
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    layer = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
        f"{layer}.self_attn.k_proj.weight": (hidden // 2, hidden),
        f"{layer}.self_attn.v_proj.weight": (hidden // 2, hidden),
        f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
        f"{layer}.mlp.gate_proj.weight": (ffn, hidden),
        f"{layer}.mlp.up_proj.weight": (ffn, hidden),
        f"{layer}.mlp.down_proj.weight": (hidden, ffn),
        f"{layer}.input_layernorm.weight": (hidden,),
        f"{layer}.post_attention_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
    }
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        scale = 1.0 if name.startswith("model.embed") else 0.2
        tensors[name] = (1 + 0.1 * values if len(shape) == 1 else scale * values).to(dtype)
    return tensors


def save(
    directory: Path, tensors: Mapping[str, torch.Tensor], *, tokenizer: bool = False, **config: Any
) -> Path:
    """A model directory; `config` changes CONFIG."""
    directory.mkdir()
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    if tokenizer:
        save_byte_tokenizer(directory)
    return directory


def load(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory, read by safetensors alone."""
    return {
        name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()
    }


def same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two models are the same to the last bit, signs of zeros included."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and torch.equal(one[name].view(BITS[one[name].dtype]), other[name].view(BITS[other[name].dtype]))
        for name in one
    )


def nearest(value: Fraction, dtype: torch.dtype) -> float:
    """The value of a type nearest to a fraction, the even one of two, by whole numbers only."""
    bits, smallest = _FORMATS[dtype]
    if value == 0:
        return 0.0
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - 1
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    spacing = Fraction(2) ** (max(exponent, smallest) - bits)
    return float(round(value / spacing) * spacing)
