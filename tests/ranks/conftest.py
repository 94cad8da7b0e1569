"""Small random Hugging Face models and their conversions, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conversion_calls import convert

from cptron.testing import run_ranks, stop_ranks


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that saves a random Llama with `transformers`; larger weights than usual make differences
    show."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**changes: object) -> Path:
        shape: dict[str, object] = {
            "vocab_size": 300,  # no multiple of 128: padding columns must not matter
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
        }
        torch.manual_seed(0)
        directory = tmp_path_factory.mktemp("hf")
        LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def untied(make_llama: Callable[..., Path]) -> Path:
    """Hugging Face directory of an untied model."""
    return make_llama()


@pytest.fixture(scope="session")
def tied(make_llama: Callable[..., Path]) -> Path:
    """Hugging Face directory of a tied model with Llama-3 rotary scaling."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return make_llama(tie_word_embeddings=True, rope_parameters=rope)


@pytest.fixture(scope="session")
def checkpoints(untied: Path, tied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted checkpoints by name. Conversion runs on a warm rank: torch's adaptor must not be applied
    here."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for name, source in (("untied", untied), ("tied", tied)):
        run_ranks(convert, 1, str(source), str(directory / name))
    return {name: directory / name for name in ("untied", "tied")}


@pytest.fixture(scope="session")
def tokens_NGS1() -> np.ndarray:
    """Token ids of 20 steps, 4 sequences each, 32 predictions long."""
    return np.random.default_rng(0).integers(0, 300, (20, 4, 33))


@pytest.fixture(scope="session", autouse=True)
def end_of_ranks() -> Iterator[None]:
    """Warm ranks end with the session."""
    yield
    stop_ranks()
