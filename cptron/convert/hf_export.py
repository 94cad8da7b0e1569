"""Checkpoint of any layout -> Hugging Face model directory.

Place in the flow: after training. One process on the CPU. Invariant: what is published under the final name
holds every weight and a config that describes exactly these weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from cptron.checkpoint import layout
from cptron.convert.hf_import import carry_small_files
from cptron.convert.safetensors_io import write_model
from cptron.convert.weight_map import to_hugging_face
from cptron.durable import must_be_new, new_directory
from cptron.errors import ConversionError
from cptron.model.families import family_of


def export_hugging_face(
    checkpoint: Path,
    target: Path,
    dtype: Literal["stored", "bf16", "fp32"] = "stored",
    base: Path | None = None,
) -> layout.Manifest:
    """Write the model of `checkpoint` to the new directory `target`; an adapter is merged into its base.

    `dtype`: `stored` keeps the precision of the checkpoint bit for bit; others convert. `base`: where an adapter's
    base is now. Raises `ConversionError` when the target exists or the config does not describe the weights.
    """
    must_be_new(target)
    manifest = layout.read_manifest(checkpoint)
    precision = manifest.precision if dtype == "stored" else dtype
    config = _exported_config(checkpoint, manifest, precision)
    if manifest.adapter is not None:
        from cptron.checkpoint.weights import base_of

        base = base_of(manifest, base)
    with new_directory(target) as working:
        carry_small_files(checkpoint / layout.HUGGING_FACE, working)
        write_model(working, _tensors(checkpoint, manifest, precision, base))
        (working / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return manifest


def _exported_config(checkpoint: Path, manifest: layout.Manifest, precision: str) -> dict[str, Any]:
    """The source's config with the weights' own dtype, after proof that it has their shape."""
    path = checkpoint / layout.HUGGING_FACE / "config.json"
    if not path.is_file():
        raise ConversionError(
            f"{path} does not exist; a model trained from random weights has no Hugging Face config"
        )
    config = json.loads(path.read_text())
    arch = family_of(manifest.arch.family).read_config(config)
    if arch != manifest.arch:
        raise ConversionError(
            f"{path} describes another model than the weights; restore the original config.json"
        )
    config.pop("torch_dtype", None)
    config["dtype"] = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    return config  # type: ignore[no-any-return]


def export_adapter(checkpoint: Path, target: Path) -> layout.Manifest:
    """Write the adapter of `checkpoint` to the new directory `target` in PEFT's form; the base is not needed."""
    from cptron.checkpoint.sharded import load_shards
    from cptron.checkpoint.weights import adapter_of
    from cptron.convert.peft_export import export_peft
    from cptron.model.adapters import adapter_parameters, is_adapter
    from cptron.model.build import build_model
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    must_be_new(target)
    manifest = layout.read_manifest(checkpoint)
    settings = adapter_of(manifest)
    options = ModelOptions(precision=manifest.precision, adapter=settings, random_weights=False)  # type: ignore[arg-type]
    with open_session():
        model = build_model(manifest.arch, options)
        load_shards(checkpoint / layout.SHARDS, [model], holds=is_adapter)
        adapters = {name: parameter.detach().cpu() for name, parameter in adapter_parameters([model]).items()}
        export_peft(target, adapters, manifest.arch, settings, manifest.hugging_face_model)
    return manifest


def _tensors(
    checkpoint: Path, manifest: layout.Manifest, precision: Any, base: Path | None
) -> Iterator[tuple[str, torch.Tensor]]:
    from cptron.checkpoint.weights import adapter_of, open_model
    from cptron.convert.peft_export import merge
    from cptron.model.adapters import adapter_parameters
    from cptron.model.build import DTYPES
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    with open_session():
        model = open_model(checkpoint, ModelOptions(precision=manifest.precision), base)  # type: ignore[arg-type]
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if manifest.adapter is None:
            tensors = to_hugging_face(family_of(manifest.arch.family), manifest.arch, weights.__getitem__)
        else:
            adapters = {name: tensor.detach() for name, tensor in adapter_parameters([model]).items()}
            tensors = merge(weights.__getitem__, adapters, manifest.arch, adapter_of(manifest))
        for name, tensor in tensors:
            yield name, tensor.to(DTYPES[precision])
