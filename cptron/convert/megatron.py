"""Checkpoints of Megatron-LM and Megatron-Bridge: their `torch_dist` shards in, ours out in their form.

Place in the flow: `cptron convert --megatron` and `cptron export --megatron`. Invariant: only tensors and our own
numbers pass; no object that a checkpoint holds is unpickled.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from pathlib import Path

import torch

from cptron.checkpoint import layout
from cptron.checkpoint.torch_dist import INDEX, TorchDistReader
from cptron.convert.hf_export import open_source
from cptron.convert.hf_import import DTYPES, Precision, files_identity, write_checkpoint
from cptron.convert.safetensors_io import read_json
from cptron.convert.shard_stream import ShardStream
from cptron.convert.source import ShardSource
from cptron.durable import must_be_new, new_directory, require_space
from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import dense_family_of, family_of
from cptron.model.vocab import padded_vocab_size

MOST_DIGITS = 18
TRACKER = "latest_checkpointed_iteration.txt"
"""Beside the iterations of a Megatron-LM run: which of them is the newest."""


def find_shards(directory: Path) -> Path:
    """The directory of shards: this one, the `shards` or `weights` in it, or the newest iteration of a run."""
    tracker = directory / TRACKER
    candidates = [directory]
    if tracker.is_file():
        word = tracker.read_text(encoding="utf-8", errors="replace").strip()
        if word != "release" and not (word.isascii() and word.isdigit() and len(word) <= MOST_DIGITS):
            raise ConversionError(f"{tracker} has {word!r}, which is no iteration; give the directory of one")
        candidates = [directory / ("release" if word == "release" else f"iter_{int(word):07d}")]
    candidates += [candidate / name for candidate in candidates for name in (layout.SHARDS, "weights")]
    for candidate in candidates:
        if (candidate / INDEX).is_file():
            return candidate
    raise ConversionError(
        f"{candidates[0]} holds no torch_dist shards ({INDEX} is missing); save with --ckpt-format torch_dist"
    )


def import_megatron(directory: Path, hugging_face: Path, target: Path) -> layout.Manifest:
    """Convert the model in `directory` into a new checkpoint `target`; `hugging_face` has its config and tokenizer."""
    config = read_json(hugging_face / "config.json")
    family = dense_family_of(config)
    arch = family.read_config(config)
    shards = find_shards(directory)
    source = ShardSource(TorchDistReader(shards), family, arch)
    dtypes = {source.dtype(name) for name in source.names}
    if not dtypes <= {torch.bfloat16, torch.float16, torch.float32}:
        raise ConversionError(f"{shards} has weights of {sorted(map(str, dtypes))}; save it in bf16 or fp32")
    precision: Precision = "bf16" if dtypes == {torch.bfloat16} else "fp32"
    return write_checkpoint(
        source,
        family,
        arch,
        target,
        config=config,
        precision=precision,
        small_files=hugging_face,
        identity=hashlib.sha256((shards / INDEX).read_bytes()).hexdigest()
        + files_identity(shards.glob("*.distcp")),
        name=hugging_face.resolve().name,
    )


def export_megatron(checkpoint: Path, target: Path, base: Path | None = None) -> layout.Manifest:
    """Write the model of `checkpoint` as a run directory of Megatron-LM: `iter_N` and the tracker. Weights only."""
    manifest = layout.read_manifest(checkpoint)
    family, arch = family_of(manifest.arch.family), manifest.arch
    name = f"iter_{manifest.step:07d}"
    must_be_new(target)
    source = open_source(checkpoint, base)
    for rule in family.rules_for(arch):
        if rule.layout == "vocab":  # written by rows, which have no checksums: whole, they are compared
            source.read(rule.hugging_face[0])
    with new_directory(target) as working:
        stream = ShardStream(
            source=source,
            family=family,
            arch=arch,
            padded_vocab=padded_vocab_size(arch.vocab_size, 1),
            dtype=DTYPES[manifest.precision],
            shards=working / name,
            progress=working / "progress",
            identity="",
            common=_common(manifest, arch),
        )
        require_space(target, int(stream.num_bytes * 1.01))
        stream.write()
        for path in stream.progress.iterdir():
            path.unlink()
        stream.progress.rmdir()
        (working / TRACKER).write_text(f"{manifest.step}\n")
    return manifest


def _common(manifest: layout.Manifest, arch: Architecture) -> dict[str, object]:
    """What Megatron-LM looks for beside the tensors, under its own names."""
    args = Namespace(
        num_layers=arch.num_layers,
        hidden_size=arch.hidden_size,
        ffn_hidden_size=arch.ffn_hidden_size,
        num_attention_heads=arch.num_attention_heads,
        num_query_groups=arch.num_kv_heads,
        kv_channels=arch.head_dim,
        max_position_embeddings=arch.max_position_embeddings,
        padded_vocab_size=padded_vocab_size(arch.vocab_size, 1),
        untie_embeddings_and_output_weights=not arch.tied_embeddings,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        swiglu=arch.activation == "silu",
        add_bias_linear=False,
        add_qkv_bias=arch.qkv_bias,
        qk_layernorm=arch.qk_norm == "head",
        apply_layernorm_1p=arch.zero_centered_norm,
        normalization="RMSNorm",
        norm_epsilon=arch.norm_eps,
        position_embedding_type="rope",
        rotary_base=arch.rope_theta,
        rotary_percent=arch.rotated_channels / arch.head_dim,
    )
    return {"args": args, "checkpoint_version": 3.0, "iteration": manifest.step}
