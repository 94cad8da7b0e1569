"""Rotary tables against transformers, and the rows of a padded vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.model.architecture import Architecture
from cptron.model.families.llama import read_config
from cptron.model.rope import inverse_frequencies, rotary_table
from cptron.model.rotary import RotaryTable
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


YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}
ULTRALONG = YARN | {"factor": 128.0, "beta_fast": 4.0, "beta_slow": 1.0}
"""Llama 3.1 8B to 1M positions (Xu et al. 2025, UltraLong: alpha 1, beta 4)."""
DEEPSEEK = YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707, "truncate": False}

THETAS = st.floats(1.5, 1e9)
CONTEXTS = st.integers(16, 1 << 20)
FACTORS = st.floats(1.0, 512.0)


@st.composite
def llama3_scalings(draw: st.DrawFn) -> dict[str, Any]:
    """All four parameters of the rule."""
    low = draw(st.floats(0.1, 8.0))
    return {
        "rope_type": "llama3",
        "factor": draw(FACTORS),
        "low_freq_factor": low,
        "high_freq_factor": low + draw(st.floats(0.1, 32.0)),
        "original_max_position_embeddings": draw(CONTEXTS),
    }


@st.composite
def yarn_scalings(draw: st.DrawFn) -> dict[str, Any]:
    """With any of the optional fields there, absent or null."""
    slow = draw(st.floats(0.25, 4.0))
    optional = {
        "beta_slow": slow,
        "beta_fast": slow + draw(st.floats(0.0, 40.0)),
        "attention_factor": draw(st.none() | st.floats(0.1, 4.0)),
        "mscale": draw(st.none() | st.floats(0.0, 2.0)),
        "mscale_all_dim": draw(st.none() | st.floats(0.0, 2.0)),
        "truncate": draw(st.booleans()),
    }
    groups = [
        ("beta_slow", "beta_fast"),
        ("attention_factor",),
        ("mscale",),
        ("mscale_all_dim",),
        ("truncate",),
    ]
    chosen = [key for group in groups if draw(st.booleans()) for key in group]
    required = {"factor": draw(FACTORS), "original_max_position_embeddings": draw(CONTEXTS)}
    return {"rope_type": "yarn", **required, **{key: optional[key] for key in chosen}}


def their_rotary(head_dim: int, theta: float, scaling: dict[str, Any]) -> tuple[Any, Architecture]:
    """The module of transformers, and our reading of the config that it was built from."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": theta, **scaling},
    )
    return LlamaRotaryEmbedding(config), read_config(config.to_dict())


def assert_equal_tables(head_dim: int, theta: float, scaling: dict[str, Any], num_positions: int) -> None:
    """Frequencies to 1e-6 of each; cosines and sines, the attention factor in them, to 1e-6."""
    theirs, arch = their_rotary(head_dim, theta, scaling)
    inv_freq_D = inverse_frequencies(arch)
    assert inv_freq_D.dtype == torch.float32
    torch.testing.assert_close(inv_freq_D, theirs.inv_freq, rtol=1e-6, atol=0)
    tables = rotary_table(arch, num_positions)
    for ours_PD, both_PD in zip(
        tables, theirs(torch.empty(0), torch.arange(num_positions)[None]), strict=True
    ):
        assert ours_PD.dtype == torch.float32
        first_PD, second_PD = both_PD[0].chunk(2, dim=-1)
        torch.testing.assert_close(ours_PD, first_PD, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours_PD, second_PD, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head_dim", [8, 64, 96, 128])
@pytest.mark.parametrize("theta", [10000.0, 100000.0, 130000.0, 500000.0, 1234567.5, 1.28e8])
@pytest.mark.parametrize(
    "scaling", [{"rope_type": "default"}, LLAMA31, LLAMA32, SMALL, YARN, ULTRALONG, DEEPSEEK]
)
def test_equal_to_transformers(head_dim: int, theta: float, scaling: dict[str, Any]) -> None:
    """Built by transformers from its own config object, and by us from the file that it writes."""
    assert_equal_tables(head_dim, theta, scaling, 300)


@pytest.mark.parametrize(
    ("theta", "scaling"),
    [(10000.0, {"rope_type": "default"}), (5e5, LLAMA31), (5e5, ULTRALONG), (8e6, {"rope_type": "default"})],
)
def test_equal_to_transformers_at_every_position(theta: float, scaling: dict[str, Any]) -> None:
    """Where float32 holds angles of 131072 radians with errors of 0.004, only the same products agree."""
    assert_equal_tables(128, theta, scaling, 131073)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(3, 80).map(lambda half: 2 * half),
    THETAS,
    st.just({"rope_type": "default"}) | llama3_scalings() | yarn_scalings(),
    st.integers(1, 2000),
)
def test_equal_to_transformers_whatever_the_parameters(
    head_dim: int, theta: float, scaling: dict[str, Any], num_positions: int
) -> None:
    """Also where the bands of a scaling are empty or begin outside the head."""
    assert_equal_tables(head_dim, theta, scaling, num_positions)


LONG_DIVISORS = [1.0, 1.1, 2.5, 7.0, 20.0, 64.0]
PHI = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0, 1.02, 1.5, 2.0, 3.0],
    "long_factor": LONG_DIVISORS,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
}


@pytest.mark.parametrize("num_positions", [1, 40, 41, 300])
@pytest.mark.parametrize("attention_factor", [None, 1.25])
def test_longrope_equals_transformers_on_both_sides_of_its_threshold(
    num_positions: int, attention_factor: float | None
) -> None:
    """Three quarters of a head of 16; the divisors of short contexts up to 40 positions, beyond it the others."""
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    from cptron.model.families.phi3 import read_config as read_phi3

    config = Phi3Config(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=400,
        original_max_position_embeddings=40,
        rope_parameters=PHI | ({} if attention_factor is None else {"attention_factor": attention_factor}),
    )
    arch = read_phi3(config.to_dict())
    assert (arch.rotary_dim, arch.rotated_channels) == (12, 12)
    theirs = Phi3RotaryEmbedding(config)(torch.empty(0), torch.arange(num_positions)[None])
    for ours_PD, both_PD in zip(
        rotary_table(arch, num_positions, long=num_positions > 40), theirs, strict=True
    ):
        torch.testing.assert_close(ours_PD, both_PD[0, :, :6], rtol=0, atol=1e-6)
    positions = torch.arange(num_positions)[None]
    device = torch.device("cpu")
    table = RotaryTable(arch, torch.float32)
    assert table.original_context == 40
    cos_S11D, _ = table.at(
        positions, 512, device, torch.full_like(positions, num_positions > 40, dtype=torch.bool)
    )
    torch.testing.assert_close(cos_S11D[:, 0, 0], theirs[0][0, :, :6], rtol=0, atol=1e-6)


def test_both_tables_of_gemma_equal_transformers() -> None:
    """The scaled one of layers that see everything, the unscaled one of those with a window."""
    from transformers import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    from cptron.model.families.gemma3 import read_config as read_gemma

    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    local = {"rope_type": "default", "rope_theta": 1e4}
    config = Gemma3TextConfig(
        num_hidden_layers=6,
        head_dim=16,
        rope_parameters={"full_attention": full, "sliding_attention": local},
    )
    arch = read_gemma(config.to_dict())
    theirs = Gemma3RotaryEmbedding(config)
    for kind, is_local in (("full_attention", False), ("sliding_attention", True)):
        expected = theirs(torch.empty(0), torch.arange(300)[None], layer_type=kind)
        for ours_PD, both_PD in zip(rotary_table(arch, 300, local=is_local), expected, strict=True):
            torch.testing.assert_close(ours_PD, both_PD[0, :, :8], rtol=0, atol=1e-6)


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_warms_attention() -> None:
    """Independent of transformers: the paper's statement, and its example of the temperature."""
    arch = their_rotary(128, 500000.0, ULTRALONG)[1]
    plain_D = inverse_frequencies(Architecture(**{**_fields(arch), "rope_scaling": None}))
    ratio_D = plain_D / inverse_frequencies(arch)
    turns_D = 8192 * plain_D / (2 * math.pi)
    torch.testing.assert_close(ratio_D[turns_D > 6], torch.ones(int((turns_D > 6).sum())))
    torch.testing.assert_close(ratio_D[turns_D < 0.7], torch.full((int((turns_D < 0.7).sum()),), 128.0))
    assert (ratio_D.diff() >= 0).all() and ((ratio_D > 1.01) & (ratio_D < 127)).any()
    cos_PD, sin_PD = rotary_table(arch, 2)
    torch.testing.assert_close(cos_PD[0], torch.full((64,), 0.1 * math.log(128) + 1))
    assert sin_PD[0].abs().max() == 0


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
