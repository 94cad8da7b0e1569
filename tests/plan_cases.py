"""Recipes and models that the planner's tests share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.gpus import GPUS

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "examples/recipes/llama3_8b_h100.yaml"
HUGGING_FACE_8B = json.loads((ROOT / "examples/recipes/models/llama-3.1-8b.json").read_text())
"""The `config.json` of Llama 3.1 8B."""


def llama(**sizes: Any) -> Architecture:
    """A Llama of these sizes; what does not count is filled in."""
    rest: dict[str, Any] = {"norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131072}
    return Architecture(**{"family": "llama", "head_dim": 128, "vocab_size": 128256, **rest, **sizes})


LLAMA3_8B = llama(
    num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_kv_heads=8
)
LLAMA3_70B = llama(
    num_layers=80, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, num_kv_heads=8
)
LLAMA3_405B = llama(
    num_layers=126, hidden_size=16384, ffn_hidden_size=53248, num_attention_heads=128, num_kv_heads=8
)
LLAMA2_7B = llama(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=11008,
    num_attention_heads=32,
    num_kv_heads=32,
    vocab_size=32000,
)
TINY = llama(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=128,
    num_attention_heads=8,
    num_kv_heads=4,
    head_dim=8,
    vocab_size=300,
    max_position_embeddings=128,
)


def recipe(
    *,
    micro: int = 1,
    batch: int = 128,
    seq_length: int = 8192,
    overrides: tuple[str, ...] = (),
    **parallel: Any,
) -> Config:
    """The shipped recipe for Llama 3.1 8B, cut so."""
    config = load_config(RECIPE, overrides).config
    return replace(
        config,
        parallel=replace(config.parallel, **{"tp": 1, **parallel}),
        train=replace(config.train, micro_batch_size=micro, global_batch_size=batch),
        data=replace(config.data, seq_length=seq_length),
    )


def h100s(count: int, **others: Any) -> Cluster:
    """So many H100."""
    return Cluster(gpu=GPUS["h100"], num_gpus=count, **others)
