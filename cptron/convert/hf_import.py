"""Hugging Face model directory -> checkpoint.

Place in the flow: `cptron convert`, before training. One process on the CPU; the checkpoint loads under any
layout. Invariant: every tensor of the source is used exactly once, and the probe loss is recorded before
anything is published.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from cptron.checkpoint import layout
from cptron.convert.probe import make_probe, probe_tokens
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.weight_map import hugging_face_names, to_megatron
from cptron.durable import begin_directory, must_be_new
from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.families.family import Family
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer
from cptron.versions import installed_versions

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README*")
"""Files carried along for export: config, tokenizer, chat template, licence."""
PROBE_TOKENS = 256


def import_hugging_face(source: Path, target: Path) -> layout.Manifest:
    """Convert `source` into a new checkpoint `target`. Raises `ConversionError` with
    nothing left behind under the final name."""
    must_be_new(target)
    reader = ModelReader(source)
    try:
        family = family_of(str(reader.config.get("model_type")))
        arch = family.read_config(reader.config)
        check_names(family, arch, reader.names)
        precision = stored_precision(reader)
        tokenizer = find_tokenizer(source)
        token_ids = probe_tokens(tokenizer, arch.vocab_size, min(PROBE_TOKENS, arch.max_position_embeddings))
        manifest = layout.Manifest(
            kind="weights",
            step=0,
            tokens_total=0,
            architecture=arch.to_dict(),
            hugging_face_model=source.name,
            tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "",
            weights_fingerprint=fingerprint(family, arch, reader),
            probe=make_probe(source, token_ids),
            precision=precision,
            versions=installed_versions(),
        )
        working = begin_directory(target)
        _write_shards(family, arch, reader, working / layout.SHARDS, precision)
        carry_small_files(source, working / layout.HUGGING_FACE)
        return layout.publish(target, manifest)
    finally:
        reader.close()


def check_names(family: Family, arch: Architecture, names: set[str]) -> None:
    """Raise `ConversionError` unless the model has exactly the family's tensors (a tied copy of the output
    allowed)."""
    wanted = set(hugging_face_names(family, arch))
    tied = set(family.output_rule.hugging_face) if arch.tied_embeddings else set()
    extra = {name for name in names - wanted - tied if not name.endswith(family.ignored)}
    missing = wanted - names
    if missing or extra:
        which, what = (missing, "lacks") if missing else (extra, "has unknown")
        raise ConversionError(
            f"the model {what} {len(which)} tensor(s) such as {min(which)}; its weights do not match config.json"
        )


def stored_precision(reader: ModelReader) -> Literal["bf16", "fp32"]:
    """Precision that holds the source's weights exactly: bf16 if all are bf16, else fp32."""
    # from the headers: reading the tensors would go through the whole model once more
    example = {reader.dtype(name): name for name in sorted(reader.names)}
    if not example.keys() <= {"BF16", "F16", "F32"}:
        dtypes = sorted(str(reader.read(name).dtype) for name in example.values())
        raise ConversionError(f"the model has tensors of {dtypes}; only bf16, fp16 and fp32 are read")
    return "bf16" if example.keys() == {"BF16"} else "fp32"


def fingerprint(family: Family, arch: Architecture, reader: ModelReader) -> str:
    """sha256 over names and bytes of all weights, in the family's order."""
    digest = hashlib.sha256()
    for name in hugging_face_names(family, arch):
        digest.update(name.encode())
        digest.update(reader.read(name).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer beside the weights, or None when the directory has none."""
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return load_tokenizer(str(directory))
    return None


def carry_small_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and licence files; weight indices stay behind."""
    target.mkdir(exist_ok=True)
    for pattern in SMALL_FILES:
        for path in source.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)


def _write_shards(
    family: Family, arch: Architecture, reader: ModelReader, shards: Path, precision: Any
) -> None:
    from cptron.checkpoint.sharded import save_shards
    from cptron.model.build import build_model
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    with open_session():
        model = build_model(arch, ModelOptions(precision=precision))
        weights = dict(model.named_parameters())
        for name, tensor in to_megatron(family, arch, reader.read, model.vocab_size):
            with torch.no_grad():
                weights.pop(name).copy_(tensor)
        assert not weights, f"parameters without a source: {sorted(weights)[:3]}"
        shards.mkdir()
        save_shards(shards, [model])
