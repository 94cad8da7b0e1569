"""Model families: one declarative file each.

Place in the flow: conversion and the builder look a family up by the `model_type` of a Hugging Face
`config.json`. Invariant: import, export and verification of a family are generated from its one `Family`
object.
"""

from __future__ import annotations

from cptron.errors import ConversionError
from cptron.model.families.family import Family
from cptron.model.families.llama import LLAMA

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face `model_type`; `ConversionError` names those that are known."""
    if model_type not in FAMILIES:
        raise ConversionError(
            f"model_type {model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
