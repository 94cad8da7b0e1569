"""Models to convert: published shapes of every family, with made weights.

Place in the flow: input of the conversion benchmark. Invariant: the same bytes for the same case everywhere; what is
measured does not depend on the values, so a block of random numbers is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cptron.convert.hf_export import tensors_in_order
from cptron.convert.safetensors_write import ShardFile, ShardPlan, TensorSpec, plan_shards, write_index
from cptron.model.architecture import Architecture
from cptron.model.families import family_of

BLOCK_ELEMENTS = 2**26
COMPLETE = "complete"
LLAMA_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Case:
    """A model of the benchmark."""

    name: str
    config: dict[str, Any]
    """In the form of Hugging Face."""

    @property
    def arch(self) -> Architecture:
        """Its architecture."""
        return family_of(self.config["model_type"]).read_config(self.config)


def _sizes(
    hidden: int, ffn: int, layers: int, heads: int, groups: int, vocab: int, context: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }


LLAMA = {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA_ROPE}
LLAMA_8B = {**LLAMA, **_sizes(4096, 14336, 32, 32, 8, 128256, 131072)}
LLAMA_70B = Case("llama-3.1-70b", {**LLAMA, **_sizes(8192, 28672, 80, 64, 8, 128256, 131072)})
LAYERS = 4
"""Of the models below, which are otherwise as published."""

CASES = [
    Case("llama-3.1-8b", LLAMA_8B),
    Case("llama-3.1-8b, 4 layers", {**LLAMA_8B, "num_hidden_layers": LAYERS}),
    Case(
        "mistral-7b-v0.3, 4 layers",
        {
            "model_type": "mistral",
            "rope_theta": 1e6,
            "sliding_window": None,
            **_sizes(4096, 14336, LAYERS, 32, 8, 32768, 32768),
        },
    ),
    Case(
        "qwen2.5-7b, 4 layers",
        {"model_type": "qwen2", "rope_theta": 1e6, **_sizes(3584, 18944, LAYERS, 28, 4, 152064, 131072)},
    ),
    Case(
        "qwen3-8b, 4 layers",
        {
            "model_type": "qwen3",
            "rope_theta": 1e6,
            "head_dim": 128,
            **_sizes(4096, 12288, LAYERS, 32, 8, 151936, 40960),
        },
    ),
    Case(
        "gemma-3-1b, 4 layers",
        {
            "model_type": "gemma3_text",
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "sliding_window_pattern": 2,
            **_sizes(1152, 6912, LAYERS, 4, 1, 262144, 32768),
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "phi-4, 4 layers",
        {"model_type": "phi3", "rope_theta": 250000.0, **_sizes(5120, 17920, LAYERS, 40, 10, 100352, 16384)},
    ),
    Case(
        "smollm3-3b, 4 layers",
        {
            "model_type": "smollm3",
            "rope_theta": 5e6,
            "no_rope_layer_interval": 4,
            **_sizes(2048, 11008, LAYERS, 16, 4, 128256, 65536),
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "olmo-2-7b, 4 layers",
        {"model_type": "olmo2", "rope_theta": 500000.0, **_sizes(4096, 11008, LAYERS, 32, 32, 100352, 4096)},
    ),
]


def make_model(case: Case, directory: Path) -> Path:
    """Write the model, unless it is there already."""
    if (directory / COMPLETE).is_file():
        return directory
    plans = _plan(case, directory)
    block = torch.randn(BLOCK_ELEMENTS, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    for plan in plans:
        with ShardFile(directory, plan) as file:
            for spec in plan.specs:
                count = torch.Size(spec.shape).numel()
                file.write(spec.name, torch.cat(list(_pieces(block, count))).view(spec.shape))
    (directory / COMPLETE).touch()
    return directory


def make_hollow(case: Case, directory: Path) -> Path:
    """The same with files that have headers and no content: of their full size, but taking no room on the disk."""
    for plan in _plan(case, directory):
        hollow = ShardFile(directory, plan)
        hollow.leave_hollow()
    return directory


def _plan(case: Case, directory: Path) -> list[ShardPlan]:
    directory.mkdir(parents=True, exist_ok=True)
    family, arch = family_of(case.config["model_type"]), case.arch
    specs = [TensorSpec(name, shape, torch.bfloat16) for name, shape in tensors_in_order(family, arch)]
    plans = plan_shards(specs)
    write_index(directory, plans)
    config = {**family.write_config(arch), "dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    return plans


def _pieces(block: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    while count > 0:
        yield block[:count]
        count -= len(block)
