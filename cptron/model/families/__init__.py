"""Model families: one declarative file each.

Place in the flow: conversion and the builder look a family up by the `model_type` of a Hugging Face
`config.json`. Invariant: import, export and verification of a family are generated from its one `Family`
object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families.family import Family
from cptron.model.families.gemma3 import GEMMA3_TEXT
from cptron.model.families.llama import LLAMA
from cptron.model.families.mistral import MISTRAL
from cptron.model.families.olmo2 import OLMO2
from cptron.model.families.phi3 import PHI3
from cptron.model.families.qwen2 import QWEN2
from cptron.model.families.qwen3 import QWEN3
from cptron.model.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3_TEXT, PHI3, SMOLLM3, OLMO2)
}

REASONS = {
    "gemma2": "its logits are capped by tanh, which no attention kernel here computes",
    "gemma3": "it also has a vision tower; take its text model, model_type gemma3_text",
}
"""Why a type that one could expect is not among them."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Fields in which configs count the experts of a layer."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face config describes. Raises `ConversionError`."""
    return dense_family_of(config).read_config(dict(config))


def dense_family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config; `ConversionError` for mixtures of experts, whatever their `model_type`."""
    for key in EXPERTS:
        count = config.get(key)
        if isinstance(count, int) and count > 1:
            raise ConversionError(
                f"config.json has {key}={count}: a mixture of experts (model_type {config.get('model_type')!r}), which "
                "cptron neither trains nor plans; take a dense model"
            )
    return family_of(str(config.get("model_type")))


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face `model_type`; `ConversionError` names those that are known."""
    if model_type not in FAMILIES:
        reason = f" ({REASONS[model_type]})" if model_type in REASONS else ""
        raise ConversionError(
            f"model_type {model_type!r} is not supported{reason}; supported: {', '.join(sorted(FAMILIES))}; to add "
            "one, copy cptron/model/families/llama.py"
        )
    return FAMILIES[model_type]
