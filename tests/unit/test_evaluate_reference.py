"""Evaluation with `transformers` alone: models with a window, on rows of several documents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from weights_world import llama, save

from cptron.errors import ConversionError
from cptron.evaluate.reference import Reference


def test_a_window_holds_within_documents() -> None:
    """Mistral's own mask for the window, and none across documents: both at once, against a mask written out."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MistralForCausalLM(
        MistralConfig(**sizes, num_key_value_heads=2, vocab_size=50, sliding_window=3, initializer_range=0.5)
    ).eval()
    ids_BS = torch.randint(0, 50, (2, 13))
    documents_BS = torch.tensor([[0] * 5 + [1] * 8, [2] * 13])
    with torch.no_grad():
        reference = Reference.__new__(Reference)  # without a directory to load from
        reference._model = model
        windows_BS3 = torch.stack([ids_BS, documents_BS, torch.zeros_like(ids_BS)], dim=-1)
        losses_BS = reference._losses(windows_BS3, document_mask=True)
        seen_BS, places = documents_BS[:, :-1], torch.arange(12)
        same_BSS = seen_BS[:, :, None] == seen_BS[:, None, :]
        near_SS = (places <= places[:, None]) & (places > places[:, None] - 3)
        logits_BSV = model(ids_BS[:, :-1], attention_mask=(same_BSS & near_SS)[:, None]).logits
    labels = ids_BS[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels, reduction="none")
    torch.testing.assert_close(losses_BS.flatten(), expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_transformers_does_not_load_is_named(tmp_path: Path) -> None:
    """No tokenizer, none that ends a document, a file of weights that is cut: one line each."""
    (tmp_path / "empty").mkdir()
    cut = save(tmp_path / "cut", llama(0), tokenizer=True)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    endless = save(tmp_path / "endless", llama(0), tokenizer=True)
    for directory, told in (
        (tmp_path / "empty", "transformers does not load"),
        (save(tmp_path / "bare", llama(0)), "transformers does not load"),
        (cut, "transformers does not load"),
        (endless, "names no eos_token"),
    ):
        with pytest.raises(ConversionError, match=told) as error:
            Reference(directory)
        assert directory.name in str(error.value) and "\n" not in str(error.value)


class LargeVocabulary(torch.nn.Module):
    """Logits over as many tokens as real vocabularies have."""

    def __init__(self, logits_BSV: torch.Tensor) -> None:
        super().__init__()
        self.logits_BSV = logits_BSV

    def forward(self, ids_BS: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        """The same whatever the tokens."""
        return SimpleNamespace(logits=self.logits_BSV)


def test_losses_are_exact_over_a_large_vocabulary() -> None:
    """Within 1e-5 nats a token of what fp64 gives, on average: the order of sums must not show."""
    torch.manual_seed(0)
    logits_BSV = torch.randn(2, 16, 50000) * 3
    ids_BS = torch.randint(0, 50000, (2, 17))
    reference = Reference.__new__(Reference)
    reference._model = LargeVocabulary(logits_BSV)
    windows_BS3 = torch.stack([ids_BS, torch.zeros_like(ids_BS), torch.zeros_like(ids_BS)], dim=-1)
    found = reference._losses(windows_BS3, document_mask=True).double().mean()
    labels = ids_BS[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits_BSV.double().flatten(0, 1), labels)
    assert abs(found - expected) < 1e-5
