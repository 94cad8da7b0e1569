"""Targets: Hugging Face models: config.json of every family, safetensors and their index, pickled weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fuzz_json import mutate_json
from fuzz_planted import archives, calls, growing, mutate_archive, mutate_pickle
from fuzz_safetensors import mutate_safetensors, planted_safetensors
from fuzz_target import Seed, Target
from safetensors import SafetensorError
from safetensors.torch import load_file
from weights_world import CONFIG, llama, save

from cptron.convert.hf_import import content_identity, describe, stored_precision
from cptron.convert.pickled import convert_pickled
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.safetensors_write import ShardFile, TensorSpec, plan_shards, write_index
from cptron.inspect_run import num_parameters
from cptron.model.architecture import Architecture
from cptron.model.families import FAMILIES, family_of
from cptron.weights.tensors import WeightStream

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_act": "silu",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"hidden_act": "silu", "sliding_window": 32, "head_dim": 16},
    "qwen2": {"hidden_act": "silu", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {
        "hidden_act": "silu",
        "head_dim": 16,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 4,
    },
    "gemma3_text": {
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 32,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": True,
    },
    "phi3": {
        "hidden_act": "silu",
        "original_max_position_embeddings": 64,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
    },
    "smollm3": {
        "hidden_act": "silu",
        "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "sliding_window": None,
        "pad_token_id": 0,
    },
    "olmo2": {"hidden_act": "silu", "attention_bias": False},
}


def make_configs(root: Path) -> list[Seed]:
    """A config of every family, and each as the product writes it."""
    seeds = []
    for name, fields in OF_FAMILY.items():
        config = {"model_type": name, **SIZES, **fields}
        for kind in ("given", "written"):
            directory = root / f"{name}_{kind}"
            directory.mkdir()
            if kind == "written":
                family = FAMILIES[name]
                config = family.write_config(family.read_config(config))
            (directory / "config.json").write_text(json.dumps(config))
            seeds.append(Seed(directory, "config.json"))
    return seeds


def read_architecture(directory: Path) -> Any:
    """The architecture, and what is counted from it."""
    from cptron.convert.safetensors_io import read_json

    config = read_json(directory / "config.json")
    arch = family_of(str(config.get("model_type"))).read_config(config)
    return arch.to_dict(), num_parameters(arch)


def check_architecture(directory: Path, value: Any) -> str | None:
    """What was read is written and read again as the same."""
    arch = Architecture.from_dict(value[0])
    family = family_of(arch.family)
    if family.read_config(family.write_config(arch)) != arch:
        return "an architecture that is another one when it is written and read again"
    counts = (
        arch.num_layers,
        arch.hidden_size,
        arch.num_attention_heads,
        arch.num_kv_heads,
        arch.head_dim,
        arch.vocab_size,
    )
    return None if all(count > 0 for count in counts) else f"an architecture that no model can have: {counts}"


def make_model(root: Path) -> list[Seed]:
    """A model by safetensors' writer, by the product's, and in two files with an index."""
    save(root / "theirs", llama(1))
    save(root / "half", llama(2, torch.bfloat16, tied=True), tie_word_embeddings=True)
    seeds = [Seed(root / name, "model.safetensors") for name in ("theirs", "half")]
    tensors = llama(3)
    (root / "ours").mkdir()
    (root / "ours" / "config.json").write_text(json.dumps(CONFIG))
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(tensors.items())]
    plans = plan_shards(specs, 6000)
    for plan in plans:
        with ShardFile(root / "ours", plan) as file:
            for spec in plan.specs:
                file.write(spec.name, tensors[spec.name])
    write_index(root / "ours", plans)
    return [*seeds, Seed(root / "ours", plans[0].file)]


def make_index(root: Path) -> list[Seed]:
    """The index of a model in several files."""
    return [Seed(make_model(root)[-1].directory, "model.safetensors.index.json")]


def make_model_configs(root: Path) -> list[Seed]:
    """The config beside weights."""
    return [Seed(seed.directory, "config.json") for seed in make_model(root)]


def read_model(directory: Path) -> Any:
    """Every tensor: shape, type and bytes; then what an import would ask of the model."""
    reader = ModelReader(directory)
    found = {}
    for name in sorted(reader.names):
        tensor = reader.read(name)
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        found[name] = (reader.shape(name), str(tensor.dtype), hashlib.sha256(data).hexdigest())
    return found


def check_model(directory: Path, value: Any) -> str | None:
    """What the safetensors package reads."""
    expected = {}
    try:
        for path in directory.glob("*.safetensors"):
            for name, tensor in load_file(path).items():
                data = (
                    tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                    if tensor.numel()
                    else b""
                )
                expected[name] = (tuple(tensor.shape), str(tensor.dtype), hashlib.sha256(data).hexdigest())
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        return f"files that safetensors refuses were read: {error}"
    return (
        None
        if expected == value
        else f"other tensors than safetensors reads: {set(expected.items()) ^ set(value.items())}"
    )


def read_import(directory: Path) -> Any:
    """What `convert`, `train` from a Hugging Face model, `merge-weights` and `health` ask of a model first."""
    reader = ModelReader(directory)
    family, arch = describe(reader)
    stream = WeightStream(directory)
    return (
        family.model_type,
        arch.to_dict(),
        stored_precision(reader),
        content_identity(reader),
        stream.headers_sha256(),
    )


def make_pickled(root: Path) -> list[Seed]:
    """By torch, in its archive and in its older form, and in two files with an index."""
    seeds = []
    for name, zipped in (("new", True), ("old", False)):
        directory = root / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(CONFIG))
        tensors = {
            "a": torch.arange(12.0).view(3, 4),
            "b": torch.ones(3, dtype=torch.bfloat16),
            "c": torch.arange(4.0).expand(2, 4),
        }
        torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        seeds.append(Seed(directory, "pytorch_model.bin"))
    return seeds


def make_pickled_index(root: Path) -> list[Seed]:
    """The index beside pickled files."""
    directory = make_pickled(root)[0].directory
    name = "pytorch_model.bin.index.json"
    (directory / name).write_text(json.dumps({"weight_map": dict.fromkeys("abc", "pytorch_model.bin")}))
    return [Seed(directory, name)]


def read_pickled(directory: Path) -> Any:
    """The model in safetensors, read by safetensors."""
    import shutil

    target = directory / "converted"
    shutil.rmtree(target, ignore_errors=True)
    try:
        convert_pickled(directory, target)
        return {
            f"{path.name} {name}": (
                str(tensor.dtype),
                repr(tensor.tolist()) if tensor.numel() < 10**5 else "",
            )
            for path in sorted(target.glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }
    finally:
        shutil.rmtree(target, ignore_errors=True)


def planted_pickled(_: Path) -> Mapping[str, bytes]:
    """Code and archives that grow."""
    return {**calls(), **growing(), **archives(b"w")}


REFUSED = frozenset(name for name in (*calls(b"."), *archives(b"w")) if "code" in name or name in calls(b"."))
_MODEL = "cptron.convert.safetensors_io.ModelReader"
TARGETS = [
    Target(
        format="Hugging Face config.json",
        name="hf-config",
        reader="cptron.model.families",
        make=make_configs,
        read=read_architecture,
        mutate=mutate_json,
        check=check_architecture,
        budget=4,
    ),
    Target(
        format="Hugging Face config.json",
        name="hf-config-with-weights",
        reader="cptron.convert.hf_import.describe, cptron.weights.tensors.WeightStream",
        make=make_model_configs,
        read=read_import,
        mutate=mutate_json,
    ),
    Target(
        format="safetensors",
        name="safetensors",
        reader=_MODEL,
        make=make_model,
        read=read_model,
        mutate=mutate_safetensors,
        check=check_model,
        planted=lambda _: planted_safetensors(),
        budget=4,
    ),
    Target(
        format="safetensors",
        name="safetensors-imported",
        reader="cptron.convert.hf_import.describe, cptron.weights.tensors.WeightStream",
        make=make_model,
        read=read_import,
        mutate=mutate_safetensors,
        planted=lambda _: planted_safetensors(),
    ),
    Target(
        format="safetensors index",
        name="safetensors-index",
        reader=_MODEL,
        make=make_index,
        read=read_model,
        mutate=mutate_json,
    ),
    Target(
        format="pickled weights (.bin)",
        name="pickled",
        reader="cptron.convert.pickled",
        make=make_pickled,
        read=read_pickled,
        mutate=lambda draw, content, others: (mutate_archive if content[:2] == b"PK" else mutate_pickle)(
            draw, content, others
        ),
        planted=planted_pickled,
        refused=REFUSED,
        budget=2,
    ),
    Target(
        format="pickled weights (.bin)",
        name="pickled-index",
        reader="cptron.convert.pickled",
        make=make_pickled_index,
        read=read_pickled,
        mutate=mutate_json,
        budget=0.5,
    ),
]
