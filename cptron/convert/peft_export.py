"""Trained adapters -> Hugging Face PEFT directory, or merged into the base's weights.

Place in the flow: after training, on one process that holds whole tensors. No megatron. Invariant: PEFT on the base
model with what is written here, and the merged weights, compute what was trained; no tensor is dropped or made up.

Shapes: R rank of the adapter, I inputs, P outputs of one projection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cptron.config.schema import AdapterConfig
from cptron.convert.weight_map import layers_of
from cptron.durable import new_directory
from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import family_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

PEFT_NAMES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
"""PEFT's name of each tensor of an adapter."""

Adapters = Mapping[str, torch.Tensor]
"""Whole tensors by megatron-core name, as `decoder.layers.0.mlp.linear_fc1.adapter.up_proj.lora_A`; layer numbers
are of the whole model."""


def export_peft(
    target: Path, adapters: Adapters, arch: Architecture, settings: AdapterConfig, base_model: str
) -> None:
    """Write `adapters` to the new directory `target` as PEFT's LoRA or DoRA on `base_model` (a name or a path).

    Raises `ConversionError` when the target exists or the tensors are not those of `settings`.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in peft_tensors(adapters, arch, settings)}
    with new_directory(target) as working:
        save_file(tensors, str(working / WEIGHTS), metadata={"format": "pt"})
        (working / CONFIG).write_text(json.dumps(_peft_config(settings, base_model), indent=2) + "\n")


def peft_tensors(
    adapters: Adapters, arch: Architecture, settings: AdapterConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """PEFT's name of every tensor of the adapters; the tensors are the same in both."""
    for module, prefix in adapted_modules(adapters, arch, settings).items():
        for ours, theirs in _tensor_names(settings).items():
            yield f"base_model.model.{module}.{theirs}", adapters[f"{prefix}.{ours}"]


def merged_weight(
    weight_PI: torch.Tensor, prefix: str, adapters: Adapters, settings: AdapterConfig
) -> torch.Tensor:
    """`W + alpha / rank * B A` in fp32; for DoRA its rows are brought to the length that was trained."""
    lora_A_RI, lora_B_PR = (adapters[f"{prefix}.{name}"].detach().float() for name in ("lora_A", "lora_B"))
    merged_PI = weight_PI.detach().float() + settings.alpha / settings.rank * (lora_B_PR @ lora_A_RI)
    if settings.kind == "lora":
        return merged_PI
    magnitude_P = adapters[f"{prefix}.magnitude"].detach()
    norm_P: torch.Tensor = torch.linalg.vector_norm(merged_PI, dim=1).to(
        magnitude_P.dtype
    )  # rounded as in training
    scale_P: torch.Tensor = (magnitude_P / norm_P).float()
    return merged_PI * scale_P[:, None]


def _tensor_names(settings: AdapterConfig) -> dict[str, str]:
    if settings.kind == "none":
        raise ConversionError(
            "adapter.kind=none has no adapter to export or merge; export the model itself instead"
        )
    return {
        ours: theirs for ours, theirs in PEFT_NAMES.items() if ours != "magnitude" or settings.kind == "dora"
    }


def adapted_modules(adapters: Adapters, arch: Architecture, settings: AdapterConfig) -> dict[str, str]:
    """Hugging Face module -> megatron-core prefix of every adapter of the model, after proof that `adapters` holds
    exactly these."""
    modules = {}
    for rule in family_of(arch.family).rules_for(arch):
        for layer in layers_of(rule, arch):
            linear = rule.megatron.format(layer=layer).removesuffix(".weight")
            for weight in rule.hugging_face:
                module = weight.format(layer=layer).removesuffix(".weight")
                projection = module.rpartition(".")[2]
                if projection in settings.targets:
                    modules[module] = f"{linear}.adapter.{projection}"
    expected = {f"{prefix}.{ours}" for prefix in modules.values() for ours in _tensor_names(settings)}
    wrong = sorted(expected ^ set(adapters))
    if wrong or not modules:
        first = wrong[0] if wrong else f"none of {', '.join(settings.targets)}"
        what = "not configured" if first in adapters else "missing"
        raise ConversionError(
            f"adapter tensors and adapter.kind={settings.kind}, adapter.targets={list(settings.targets)} differ: "
            f"{first} is {what} ({len(wrong)} such in all); give the configuration that the adapter was trained with"
        )
    return modules


def _peft_config(settings: AdapterConfig, base_model: str) -> dict[str, Any]:
    alpha = settings.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": settings.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_dora": settings.kind == "dora",
        "target_modules": list(settings.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
