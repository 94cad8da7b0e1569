"""Whether models may be merged: same tensors, same architecture, same tokens.

Place in the flow: before a merge writes its first byte. Reads headers and small files; weights only where a tied model
stores its embedding twice. Invariant: what passes can be added element by element, and row N of every embedding is the
same token; what is waived is noted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cptron.convert.small_files import find_tokenizer
from cptron.errors import ConversionError
from cptron.model.families import architecture_of
from cptron.tokens.tokenizer import Tokenizer
from cptron.weights.tensors import TensorInfo, WeightStream

SHOWN = 3
"""Names in a message."""
NOT_ARCHITECTURE = {
    "_name_or_path", "_model_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype",
    "embd_pdrop", "eos_token_id", "initializer_range", "pad_token_id", "resid_pdrop", "torch_dtype",
    "transformers_version", "unk_token_id", "use_cache",
}  # fmt: skip
"""Fields of config.json that do not change what given weights compute."""


def require_mergeable(
    models: Sequence[WeightStream], *, different_tokenizers: bool = False, different_configs: bool = False
) -> list[str]:
    """Compare every model with the first; returns what a reader should know. Raises `ConversionError` on the first
    difference that is not allowed."""
    first, *others = models
    notes = []
    for other in others:
        _require_same_tensors(first, other)
        notes += _compare_configs(first, other, allowed=different_configs)
    return notes + _compare_tokenizers(models, allowed=different_tokenizers)


def _require_same_tensors(first: WeightStream, other: WeightStream) -> None:
    if first.tied != other.tied:
        raise ConversionError(
            f"tie_word_embeddings is {first.tied} in {first.directory} and {other.tied} in {other.directory}, and must "
            "be the same; merge models of one lineage"
        )
    ours, theirs = first.infos, other.infos
    for lacking, having, names in (
        (other, first, ours.keys() - theirs.keys()),
        (first, other, theirs.keys() - ours.keys()),
    ):
        if names:
            raise ConversionError(
                f"{lacking.directory} lacks {len(names)} tensor(s) of {having.directory}: {_some(sorted(names))}; "
                "merge models of one architecture"
            )
    shapes = [name for name in ours if ours[name].shape != theirs[name].shape]
    if shapes:
        shown = [f"{name} {_shape(ours[name])} and {_shape(theirs[name])}" for name in shapes]
        raise ConversionError(
            f"{first.directory} and {other.directory} differ in {len(shapes)} shape(s): {_some(shown)}; merge models "
            "of one architecture and vocabulary"
        )


def _compare_configs(first: WeightStream, other: WeightStream, *, allowed: bool) -> list[str]:
    ours, theirs = _architecture(first.config), _architecture(other.config)
    if ours.keys() != theirs.keys() and "family" in ours.keys() | theirs.keys():  # only one could be read
        ours, theirs = _fields(first.config), _fields(other.config)
    different = sorted(
        key for key in ours.keys() | theirs.keys() if ours.get(key, ...) != theirs.get(key, ...)
    )
    if not different:
        return []
    values = [f"{key} {ours.get(key, 'absent')} and {theirs.get(key, 'absent')}" for key in different]
    what = f"config.json of {first.directory} and of {other.directory} differ in {_some(values)}"
    if not allowed:
        raise ConversionError(
            f"{what}: one set of weights cannot serve both; merge models of one architecture, or add "
            "--allow-different-configs if you know that the carried config.json is right"
        )
    return [f"{what} (allowed)"]


def _architecture(config: dict[str, Any]) -> Mapping[str, Any]:
    """What decides the computation: as the family reads it, so that spellings of two transformers versions are equal;
    else every field but those that do not matter."""
    try:
        return architecture_of(config).to_dict()
    except ConversionError:
        return _fields(config)


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_ARCHITECTURE}


def _compare_tokenizers(models: Sequence[WeightStream], *, allowed: bool) -> list[str]:
    found = [(model, tokenizer) for model in models if (tokenizer := find_tokenizer(model.directory))]
    notes = []
    if len(found) < len(models):
        without = [str(model.directory) for model in models if model not in [m for m, _ in found]]
        notes.append(f"no tokenizer in {_some(without)}: not compared")
    for model, tokenizer in found[1:]:
        first, reference = found[0]
        if tokenizer.fingerprint == reference.fingerprint:
            continue
        between = f"the tokenizers of {first.directory} and {model.directory}"
        if _same_ids(tokenizer, reference):
            notes.append(
                f"{between} give the same ids; they name other BOS or EOS tokens "
                f"({reference.bos_id}, {reference.eos_id} and {tokenizer.bos_id}, {tokenizer.eos_id})"
            )
        elif allowed:
            notes.append(f"{between} differ (allowed)")
        else:
            raise ConversionError(
                f"{between} differ ({reference.fingerprint[:12]} and {tokenizer.fingerprint[:12]}), so rows of one id "
                "are different tokens; merge models of one tokenizer, or add --allow-different-tokenizers"
            )
    return notes


def _same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers of different fingerprints are one definition: a base model and its chat model often
    differ in the token that ends a document, and in nothing else."""
    for form in ("tokenizer.json", "tokenizer.model"):
        definition = one.definition(form)
        if definition is not None:
            return definition == other.definition(form)
    return False


def _shape(info: TensorInfo) -> str:
    return json.dumps(info.shape)


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
