"""Export to PEFT form and merging, against products written out by hand; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_arch import SMALL

from cptron.config.schema import AdapterConfig
from cptron.convert.merged_source import MergedSource
from cptron.convert.peft_export import CONFIG, WEIGHTS, export_peft, peft_tensors
from cptron.convert.weight_map import to_hugging_face, to_megatron
from cptron.errors import ConversionError
from cptron.model.families import family_of

ARCH = replace(SMALL, head_dim=4)
LLAMA = family_of("llama")
PREFIX = "decoder.layers.{layer}.{linear}.adapter.{projection}"
LINEARS = {
    "q_proj": ("self_attention.linear_qkv", 16, 8),
    "v_proj": ("self_attention.linear_qkv", 8, 8),
    "o_proj": ("self_attention.linear_proj", 8, 16),
    "up_proj": ("mlp.linear_fc1", 12, 8),
    "down_proj": ("mlp.linear_fc2", 8, 12),
}
"""Linear, outputs and inputs of each target."""

Tensors = dict[str, torch.Tensor]


def settings(kind: Any = "lora", **changes: Any) -> AdapterConfig:
    """Rank 3, scaled by 5 / 3."""
    return AdapterConfig(**{"kind": kind, "rank": 3, "alpha": 5.0, "targets": tuple(LINEARS), **changes})


def adapters(kind: str) -> Tensors:
    """Random tensors under megatron-core names."""
    torch.manual_seed(0)
    found: Tensors = {}
    for layer in range(ARCH.num_layers):
        for projection, (linear, outputs, inputs) in LINEARS.items():
            prefix = PREFIX.format(layer=layer, linear=linear, projection=projection)
            found[f"{prefix}.lora_A"] = torch.randn(3, inputs)
            found[f"{prefix}.lora_B"] = torch.randn(outputs, 3)
            if kind == "dora":
                found[f"{prefix}.magnitude"] = torch.rand(outputs) + 0.5
    return found


class Dictionary:
    """`WeightSource` over tensors at hand."""

    def __init__(self, tensors: Tensors) -> None:
        self.read = tensors.__getitem__

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        return self.read(name).narrow(dim, start, end - start)


def merged_weights(hugging_face: Tensors, given: Tensors, kind: str) -> Tensors:
    """Every tensor, read whole; a range of it must be the same."""
    source = MergedSource(Dictionary(hugging_face), ARCH, given, settings(kind))
    for name, tensor in hugging_face.items():
        part = source.read_range(name, 0, 1, len(tensor))
        assert torch.equal(part, source.read(name)[1:])
    return {name: source.read(name) for name in hugging_face}


def base_weights(dtype: torch.dtype = torch.float32) -> tuple[Tensors, Tensors]:
    """The same random base model under megatron-core and under Hugging Face names."""
    torch.manual_seed(1)
    shapes = {"linear_qkv": (32, 8), "linear_proj": (8, 16), "linear_fc1": (24, 8), "linear_fc2": (8, 12)}
    megatron: Tensors = {}
    for rule in LLAMA.rules_for(ARCH):
        shape = next((shape for key, shape in shapes.items() if key in rule.megatron), (8,))
        shape = (128, 8) if rule.layout == "vocab" else shape
        for layer in range(ARCH.num_layers if "{layer}" in rule.megatron else 1):
            megatron[rule.megatron.format(layer=layer)] = torch.randn(shape, dtype=dtype)
    return megatron, dict(to_hugging_face(LLAMA, ARCH, megatron.__getitem__))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_directory_holds_every_tensor_and_the_configuration(kind: str, tmp_path: Path) -> None:
    """Names, values and configuration as PEFT reads them."""
    given = adapters(kind)
    export_peft(tmp_path / "out", given, ARCH, settings(kind), "owner/model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert len(stored) == len(given)
    module = "base_model.model.model.layers.1.self_attn.v_proj"
    ours = "decoder.layers.1.self_attention.linear_qkv.adapter.v_proj"
    assert torch.equal(stored[f"{module}.lora_A.weight"], given[f"{ours}.lora_A"])
    assert torch.equal(stored[f"{module}.lora_B.weight"], given[f"{ours}.lora_B"])
    if kind == "dora":
        assert torch.equal(stored[f"{module}.lora_magnitude_vector"], given[f"{ours}.magnitude"])
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "owner/model",
        "r": 3,
        "lora_alpha": 5,
        "use_dora": kind == "dora",
        "target_modules": list(LINEARS),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merge_equals_the_definition(kind: str) -> None:
    """Targets become `W + 5/3 B A`, for DoRA with the trained row lengths; everything else stays, bit for bit."""
    given = adapters(kind)
    _, hugging_face = base_weights(torch.bfloat16)
    merged = merged_weights(hugging_face, given, kind)
    assert merged.keys() == hugging_face.keys()
    for name, tensor in merged.items():
        *_, projection, _ = name.split(".")
        if projection not in LINEARS:
            assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, hugging_face[name])
            continue
        linear, layer = LINEARS[projection][0], name.split(".")[2]
        prefix = PREFIX.format(layer=layer, linear=linear, projection=projection)
        expected = (
            hugging_face[name].double()
            + 5 / 3 * given[f"{prefix}.lora_B"].double() @ given[f"{prefix}.lora_A"].double()
        )
        if kind == "dora":
            expected *= (given[f"{prefix}.magnitude"].double() / expected.norm(dim=1))[:, None]
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-5)


def test_merged_weights_go_back_into_megatron_names() -> None:
    """Merged tensors are a Hugging Face model like any other."""
    megatron, hugging_face = base_weights()
    merged = merged_weights(hugging_face, adapters("lora"), "lora")
    back = dict(to_megatron(LLAMA, ARCH, merged.__getitem__, 128))
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in megatron.items()
    }


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("lora", {"targets": ("q_proj",)}, "not configured"),
        ("lora", {"targets": (*LINEARS, "k_proj")}, "k_proj.lora_A is missing"),
        ("dora", {}, "magnitude is missing"),
        ("none", {}, "adapter.kind=none"),
        ("lora", {"targets": ("qkv_proj",)}, "not configured"),
    ],
)
def test_another_configuration_is_refused(kind: str, changes: dict[str, Any], words: str) -> None:
    """Tensors that the configuration does not explain are never dropped, missing ones never made up."""
    with pytest.raises(ConversionError, match=words):
        dict(peft_tensors(adapters("lora"), ARCH, settings(kind, **changes)))


def test_existing_directory_is_refused(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="already exists"):
        export_peft(tmp_path / "out", adapters("lora"), ARCH, settings(), "owner/model")
    assert list((tmp_path / "out").iterdir()) == []
