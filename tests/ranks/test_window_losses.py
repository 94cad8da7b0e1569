"""Losses window by window: under every layout those of `transformers`, one window at a time; and what probes show of a
model that copies and of one that does not.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_calls import convert
from probe_calls import SEED, losses_by_window, sets_of
from tokens_world import write_known

from cptron.config.schema_forgetting import ForgettingConfig
from cptron.data.batch import MicroBatch
from cptron.forgetting.probes import probe_sets
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

PROBES = ForgettingConfig(induction_sequences=5, mapping_sequences=3, mapping_pairs=4, probe_tokens=32)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven documents of 1 to 40 tokens; in some of them a part is not learned."""
    draw = np.random.default_rng(1)
    documents = [
        draw.integers(0, 300, length).tolist() for length in (7, 40, 1, 13, 30, 2, 25, 9, 17, 33, 12)
    ]
    mask = np.repeat(draw.integers(0, 2, 63), 3)[:189].tolist()
    return str(write_known(tmp_path_factory.mktemp("tokens") / "text", documents, mask))


@pytest.fixture(scope="module")
def expected(untied: Path, prefix: str) -> dict[str, tuple[list[float], list[int]]]:
    """By `transformers`, a document of a window at a time."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(untied).eval()
    found: dict[str, tuple[list[float], list[int]]] = {}
    with torch.no_grad():
        for each in sets_of(prefix, PROBES, 300, (1, 0, 1), 1):
            losses = [_window_loss(model, batch) for batch in each]
            counted = [int(batch.loss_mask_BS.sum()) for batch in each]
            kept = [(loss, count) for loss, count in zip(losses, counted, strict=True) if count]
            found[each.name] = ([loss for loss, _ in kept], [count for _, count in kept])
    return found


def _window_loss(model: Any, batch: MicroBatch) -> float:
    import torch

    documents_S = batch.documents_BS[0]
    cuts = [0, *(np.flatnonzero(np.diff(documents_S)) + 1).tolist(), len(documents_S)]
    total = 0.0
    for start, stop in itertools.pairwise(cuts):
        logits = model(
            torch.from_numpy(batch.tokens_BS[:, start:stop]), position_ids=torch.arange(start, stop)[None]
        ).logits[0]
        losses = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(batch.labels_BS[0, start:stop]), reduction="none"
        )
        total += float((losses * torch.from_numpy(batch.loss_mask_BS[0, start:stop])).sum())
    return total


@pytest.mark.parametrize(
    ("layout", "world_size", "micro"),
    [
        (Layout(), 1, 3),
        (Layout(tp=2), 2, 2),
        (Layout(pp=2), 2, 2),
        (Layout(cp=2), 2, 2),
        (Layout(), 2, 3),
        (Layout(pp=2, virtual_stages=2), 2, 1),
    ],
    ids=["one", "tp2", "pp2", "cp2", "dp2", "pp2vp2"],
)
def test_every_layout_has_the_losses_of_single_windows(
    layout: Layout,
    world_size: int,
    micro: int,
    checkpoints: dict[str, Path],
    prefix: str,
    expected: dict[str, tuple[list[float], list[int]]],
) -> None:
    """The same windows, tokens and losses on every rank, whatever fills up the last micro-batch."""
    words = (str(checkpoints["untied"]), prefix, PROBES, layout, micro)
    for found in run_ranks(losses_by_window, world_size, *words):
        assert found.keys() == expected.keys() == {"text", "induction", "mapping"}
        for name, (nats, tokens) in expected.items():
            assert found[name][1].tolist() == tokens
            np.testing.assert_allclose(found[name][0], nats, rtol=1e-5)


VOCAB, HALF = 40, 16


def save_copier(directory: Path) -> Path:
    """A Llama of one layer that predicts the token which came HALF - 1 places before: made by hand.

    The hidden state is: the token one-hot, what was copied, and a one. Query and key see only the one; their fixed
    vectors are turned against one another so that all frequencies agree at that distance and at no other.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size, copied = 128, 64
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": size,
        "intermediate_size": 8,
        "rope_theta": 100.0,
    }
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": size}
    config = LlamaConfig(**shape, max_position_embeddings=64, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    half = size // 2
    angles = (HALF - 1) * 100.0 ** (-torch.arange(half) / half)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        layer, tokens = model.model.layers[0].self_attn, torch.arange(VOCAB)
        model.model.embed_tokens.weight[tokens, tokens] = 1.0
        model.model.embed_tokens.weight[:, -1] = 1.0
        layer.k_proj.weight[:half, -1] = 1.0
        # turned back by the distance at which it is to fit
        layer.q_proj.weight[:half, -1], layer.q_proj.weight[half:, -1] = angles.cos(), -angles.sin()
        layer.v_proj.weight[tokens, tokens] = 1.0
        layer.o_proj.weight[copied + tokens, tokens] = 1.0
        model.lm_head.weight[tokens, copied + tokens] = 5.0
    model.save_pretrained(directory)
    return directory


def test_a_probe_tells_a_model_that_copies(tmp_path: Path) -> None:
    """It has nearly no loss on the second half, and no idea of the first; with its attention taken away it shows
    nothing."""
    from transformers import LlamaForCausalLM

    scores = {}
    save_copier(tmp_path / "copies")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "copies")
    model.model.layers[0].self_attn.o_proj.weight.data.zero_()
    model.save_pretrained(tmp_path / "blind")
    probes = ForgettingConfig(induction_sequences=6, probe_tokens=2 * HALF)
    for name in ("copies", "blind"):
        run_ranks(convert, 1, str(tmp_path / name), str(tmp_path / f"{name}_converted"))
        (found,) = run_ranks(
            losses_by_window, 1, str(tmp_path / f"{name}_converted"), "", probes, Layout(), 4
        )
        nats_W, tokens_W = found["induction"]
        scores[name] = (nats_W / tokens_W)[1::2] - (nats_W / tokens_W)[0::2]
    assert len(scores["copies"]) == len(probe_sets(probes, SEED, VOCAB, (1, 0, 1), 1)[0]._tokens_PT)
    assert scores["copies"].max() < -2.0
    assert abs(scores["blind"]).max() < 1e-3
