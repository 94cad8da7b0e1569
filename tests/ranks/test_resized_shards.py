"""A model with rows for new tokens, cut over tensor ranks: all ranks together hold the dense matrices, zeros behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import resized_calls
import torch
from extension_world import DOMAIN, blocks, make_base
from safetensors.torch import load_file
from weights_world import CONFIG, llama, save

from cptron.testing import run_ranks
from cptron.tokenizer.base import open_base
from cptron.tokenizer.extend import learn
from cptron.tokenizer.extended import extended_content, write_extended
from cptron.tokenizer.word_counts import count_words
from cptron.weights.tensors import EMBEDDING, OUTPUT

NAMES = {"embedding.word_embeddings.weight": EMBEDDING, "output_layer.weight": OUTPUT}


@pytest.mark.parametrize("tied", [False, True])
def test_shards_are_the_dense_matrices(tied: bool, tmp_path: Path) -> None:
    """Under TP 1, 2 and 4."""
    source = tmp_path / "hf"
    make_base(tmp_path / "base", "gpt2")
    base = open_base(tmp_path / "base")
    rows = base.tokenizer.vocab_size
    tensors = llama(3, torch.float32, tied)
    for name in (EMBEDDING, OUTPUT):
        if name in tensors:
            tensors[name] = torch.randn(rows, CONFIG["hidden_size"])
    kv_rows = CONFIG["hidden_size"]
    for name in ("k_proj", "v_proj"):
        tensors[f"model.layers.0.self_attn.{name}.weight"] = torch.randn(kv_rows, kv_rows)
    save(source, tensors, vocab_size=rows, tie_word_embeddings=tied, num_key_value_heads=4)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (source / file).write_bytes((tmp_path / "base" / file).read_bytes())
    learned = learn(base, count_words(base, blocks(DOMAIN)), 30, 2)
    (tmp_path / "new").mkdir()
    write_extended(base, extended_content(base, learned.new_tokens, learned.merges), tmp_path / "new")
    words = str(source), str(tmp_path / "new"), str(tmp_path / "checkpoint"), str(tmp_path / "out")
    run_ranks(resized_calls.convert, 1, *words)
    dense = load_file(tmp_path / "out" / "model.safetensors")
    for tp in (1, 2, 4):
        found = run_ranks(resized_calls.vocabulary_shards, tp, str(tmp_path / "checkpoint"), tp)
        assert found[0].keys() == (NAMES.keys() - {"output_layer.weight"} if tied else NAMES.keys())
        for name in found[0]:
            whole = torch.cat([torch.from_numpy(shards[name]) for shards in found])
            assert len(whole) % 128 == 0
            assert torch.equal(whole[: rows + 30], dense[NAMES[name]])
            assert not whole[rows + 30 :].any()
