"""Checkpoint of any layout -> Hugging Face model directory.

Place in the flow: after training. One process on the CPU, a few tensors in memory. Invariant: what is published under
the final name holds every weight as it was recorded, and a config that is made from the model and describes exactly
these weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from cptron.checkpoint import layout
from cptron.checkpoint.reader import ShardReader
from cptron.convert.exported_config import check_export, exported_config
from cptron.convert.hf_import import DTYPES
from cptron.convert.safetensors_write import ShardFile, ShardPlan, TensorSpec, plan_shards, write_index
from cptron.convert.shard_stream import num_workers
from cptron.convert.small_files import carry_small_files
from cptron.convert.source import ShardSource, WeightSource
from cptron.convert.weight_map import expected_shapes, layer_by_layer, megatron_shape
from cptron.durable import must_be_new, new_directory, require_space
from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.families.family import Family


def export_hugging_face(
    checkpoint: Path,
    target: Path,
    dtype: Literal["stored", "bf16", "fp32"] = "stored",
    base: Path | None = None,
) -> layout.Manifest:
    """Write the model of `checkpoint` to the new directory `target`; an adapter is merged into its base.

    `dtype`: `stored` keeps the precision of the checkpoint bit for bit; others convert. `base`: where an adapter's
    base is now. Raises `ConversionError` when the target exists or has no room, `CheckpointError` when the checkpoint
    is damaged.
    """
    must_be_new(target)
    manifest = layout.read_manifest(checkpoint)
    precision = manifest.precision if dtype == "stored" else dtype
    family, arch = family_of(manifest.arch.family), manifest.arch
    layout.read_hugging_face(checkpoint)  # config and tokenizer are those that were written
    config = exported_config(checkpoint / layout.HUGGING_FACE, family, arch, precision)
    source = open_source(checkpoint, base)
    write_directory(source, family, arch, target, config, precision, checkpoint / layout.HUGGING_FACE)
    return manifest


def open_source(checkpoint: Path, base: Path | None = None) -> WeightSource:
    """The weights of a checkpoint of any kind by Hugging Face name, compared with what it recorded as they are read."""
    from cptron.checkpoint.weights import adapter_of, base_of
    from cptron.convert.merged_source import MergedSource, read_adapters

    manifest = layout.read_manifest(checkpoint)
    if manifest.adapter is None:
        return _recorded_source(checkpoint, manifest)
    path = base_of(manifest, base)
    adapters = read_adapters(ShardReader(checkpoint / layout.SHARDS), manifest.arch, manifest.checksums)
    whole = _recorded_source(path, layout.read_manifest(path))
    return MergedSource(whole, manifest.arch, adapters, adapter_of(manifest))


def _recorded_source(checkpoint: Path, manifest: layout.Manifest) -> ShardSource:
    reader = ShardReader(checkpoint / layout.SHARDS)
    return ShardSource(reader, family_of(manifest.arch.family), manifest.arch, manifest.checksums)


def write_directory(
    source: WeightSource,
    family: Family,
    arch: Architecture,
    target: Path,
    config: dict[str, Any],
    precision: str,
    small_files: Path | None,
) -> None:
    """Write a whole Hugging Face model from any source, and publish it once `transformers` takes it."""
    specs = [TensorSpec(name, shape, DTYPES[precision]) for name, shape in tensors_in_order(family, arch)]
    shards = plan_shards(specs)
    num_bytes = sum(shard.num_bytes for shard in shards)
    require_space(target, int(num_bytes * 1.01))
    with new_directory(target) as working:
        if small_files is not None and small_files.is_dir():
            carry_small_files(small_files, working)
        bar = tqdm(total=num_bytes, desc=f"export {target.name}", unit="B", unit_scale=True, disable=None)
        with bar, ThreadPoolExecutor(num_workers(bytes_in_hand(family, arch, precision))) as pool:
            try:
                list(pool.map(lambda shard: _write_shard(source, working, shard, bar.update), shards))
            except OSError as error:
                raise ConversionError(
                    f"{target} cannot be written ({error}); make room and try again"
                ) from None
        write_index(working, shards)
        (working / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        check_export(working, specs)


def bytes_in_hand(family: Family, arch: Architecture, precision: str) -> int:
    """What a worker holds that reads shards: the largest tensor of a layer, and as much again while it is converted."""
    layers = [rule for rule in family.rules_for(arch) if rule.layout != "vocab"]
    elements = max(math.prod(megatron_shape(rule, arch, 0)) for rule in layers)
    return 2 * elements * DTYPES[precision].itemsize


def tensors_in_order(family: Family, arch: Architecture) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all Hugging Face tensors, layer by layer, those of one rule side by side."""
    return [
        (name.format(layer=layer), shape)
        for rule, layer in layer_by_layer(family, arch)
        for name, shape in zip(rule.hugging_face, expected_shapes(rule, arch), strict=True)
    ]


def _write_shard(
    source: WeightSource, directory: Path, plan: ShardPlan, report: Callable[[int], object]
) -> None:
    with ShardFile(directory, plan) as file:
        for spec in plan.specs:
            file.write(spec.name, source.read(spec.name).to(spec.dtype))
            report(spec.num_bytes)


def export_adapter(checkpoint: Path, target: Path) -> layout.Manifest:
    """Write the adapter of `checkpoint` to the new directory `target` in PEFT's form; the base is not needed."""
    from cptron.checkpoint.weights import adapter_of
    from cptron.convert.merged_source import read_adapters
    from cptron.convert.peft_export import export_peft

    must_be_new(target)
    manifest = layout.read_manifest(checkpoint)
    adapters = read_adapters(ShardReader(checkpoint / layout.SHARDS), manifest.arch, manifest.checksums)
    export_peft(target, adapters, manifest.arch, adapter_of(manifest), manifest.hugging_face_model)
    return manifest
