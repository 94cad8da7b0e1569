"""Rotary tables against transformers, and the rows of a padded vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.model.architecture import Architecture
from cptron.model.families.llama import read_config
from cptron.model.rope import inverse_frequencies
from cptron.model.vocab import padded_vocab_size

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA32 = LLAMA31 | {"factor": 32.0}
SMALL = LLAMA31 | {"factor": 2.0, "high_freq_factor": 7.5, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("head_dim", [8, 64, 96, 128])
@pytest.mark.parametrize("theta", [10000.0, 100000.0, 130000.0, 500000.0, 1234567.5])
@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, LLAMA31, LLAMA32, SMALL])
def test_inverse_frequencies_equal_transformers(head_dim: int, theta: float, scaling: dict[str, Any]) -> None:
    """Built by transformers from its own config object, and by us from the file that it writes."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": theta, **scaling},
    )
    theirs = LlamaRotaryEmbedding(config)
    assert theirs.attention_scaling == 1.0
    ours_D = inverse_frequencies(read_config(config.to_dict()))
    assert ours_D.dtype == torch.float32
    torch.testing.assert_close(ours_D, theirs.inv_freq, rtol=1e-6, atol=0)


def test_llama3_scaling_has_all_three_bands() -> None:
    """Or the comparison above would not see the middle one."""
    arch = read_config(
        {
            **{"num_attention_heads": 1, "hidden_size": 128, "num_hidden_layers": 1, "vocab_size": 8},
            **{"intermediate_size": 8, "max_position_embeddings": 8, "rms_norm_eps": 1e-5},
            **{"rope_theta": 500000.0, "rope_scaling": LLAMA31},
        }
    )
    plain = inverse_frequencies(Architecture(**{**_fields(arch), "rope_scaling": None}))
    ratio = plain / inverse_frequencies(arch)
    assert ratio.min() == 1.0
    assert ratio.max() == pytest.approx(8.0)
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


def _fields(arch: Architecture) -> dict[str, Any]:
    return {name: getattr(arch, name) for name in arch.__dataclass_fields__}


@settings(deadline=None)
@given(st.integers(1, 300_000), st.integers(1, 64))
def test_vocabulary_is_padded_as_little_as_possible(vocab_size: int, tp: int) -> None:
    """The least size that holds the vocabulary, is a multiple of 128, and is the same on every tensor rank."""
    rows = padded_vocab_size(vocab_size, tp)
    assert rows >= vocab_size
    assert rows % 128 == rows % tp == 0
    smaller = range(rows - 128, vocab_size - 1, -128)
    assert not any(size % tp == 0 for size in smaller)


@pytest.mark.parametrize(
    ("vocab_size", "tp", "rows"), [(49152, 1, 49152), (128256, 8, 128256), (32001, 2, 32128), (300, 3, 384)]
)
def test_known_vocabularies(vocab_size: int, tp: int, rows: int) -> None:
    """SmolLM2, Llama 3, Llama 2 with one token more, and a size that 128 alone would not divide."""
    assert padded_vocab_size(vocab_size, tp) == rows
