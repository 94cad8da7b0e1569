"""Hugging Face model directory, or megatron-core's shards -> checkpoint.

Place in the flow: `cptron convert`, before training. One process on the CPU, a few tensors in memory; the checkpoint
loads under any layout. Invariant: every tensor of the source is used exactly once, and checksums and the probe loss are
recorded before anything is published.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from cptron.checkpoint import layout
from cptron.checkpoint.checksum import fingerprint
from cptron.convert.probe import make_probe, probe_tokens
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.shard_stream import ShardStream, num_workers
from cptron.convert.small_files import carry_small_files, find_tokenizer
from cptron.convert.source import WeightSource
from cptron.convert.weight_map import check_shapes, hugging_face_names, layers_of
from cptron.durable import free_bytes, must_be_new, require_space, resumable_directory
from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import dense_family_of, family_of
from cptron.model.families.family import Family
from cptron.model.vocab import padded_vocab_size
from cptron.versions import installed_versions

PROBE_TOKENS = 64
PROGRESS = "progress"
"""Within an unfinished checkpoint: records of the files that are complete."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Precision = Literal["bf16", "fp32"]


def import_hugging_face(source: Path, target: Path) -> layout.Manifest:
    """Convert `source` into a new checkpoint `target`. Raises `ConversionError` with nothing left behind under the
    final name; the same call goes on with what an interrupted one has written."""
    reader = ModelReader(source)
    family, arch = describe(reader)
    require_tied_copy(reader, family, arch)
    return write_checkpoint(
        reader,
        family,
        arch,
        target,
        config=reader.config,
        precision=stored_precision(reader),
        small_files=source,
        identity=content_identity(reader) + files_identity(reader.files),
        name=source.resolve().name,
    )


def plan_import(source: Path, target: Path) -> dict[str, Any]:
    """What `import_hugging_face` would do, from the headers alone: sizes, and whether there is room."""
    must_be_new(target)
    reader = ModelReader(source)
    family, arch = describe(reader)
    precision = stored_precision(reader)
    stream = ShardStream(
        source=reader,
        family=family,
        arch=arch,
        padded_vocab=padded_vocab_size(arch.vocab_size, 1),
        dtype=DTYPES[precision],
        shards=target / layout.SHARDS,
        progress=target / PROGRESS,
        identity="",
    )
    sizes = [reader.shape(name) for name in reader.names]
    return {
        "family": family.model_type,
        "tensors": len(sizes),
        "parameters": sum(math.prod(shape) for shape in sizes),
        "precision": precision,
        "bytes": stream.num_bytes,
        "free_bytes": free_bytes(target),
        "files": stream.num_files,
        "largest_tensor_bytes": max(map(math.prod, sizes)) * DTYPES[precision].itemsize,
        "largest_block_bytes": stream.largest_block_bytes,
        "workers": num_workers(),
    }


def describe(reader: ModelReader) -> tuple[Family, Architecture]:
    """Family and architecture of a model directory, after proof that its tensors are exactly those."""
    family = dense_family_of(reader.config)
    arch = family.read_config(reader.config)
    check_names(family, arch, reader.names)
    for rule in family.rules_for(arch):
        for layer in layers_of(rule, arch):
            names = [name.format(layer=layer) for name in rule.hugging_face]
            check_shapes({name: reader.shape(name) for name in names}, rule, arch, layer)
    return family, arch


def write_checkpoint(
    source: WeightSource,
    family: Family,
    arch: Architecture,
    target: Path,
    *,
    config: dict[str, Any],
    precision: Precision,
    small_files: Path,
    identity: str,
    name: str,
) -> layout.Manifest:
    """Write, prove and publish a checkpoint of whole weights. `config` is Hugging Face's, for the probe."""
    tokenizer = find_tokenizer(small_files)
    token_ids = probe_tokens(tokenizer, arch.vocab_size, min(PROBE_TOKENS, arch.max_position_embeddings))
    padded = padded_vocab_size(arch.vocab_size, 1)
    with resumable_directory(target) as working:
        versions = installed_versions()
        plan = [identity, precision, padded, arch.to_dict(), repr(family.rules_for(arch)), versions["cptron"]]
        stream = ShardStream(
            source=source,
            family=family,
            arch=arch,
            padded_vocab=padded,
            dtype=DTYPES[precision],
            shards=working / layout.SHARDS,
            progress=working / PROGRESS,
            identity=hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest(),
        )
        written = sum(path.stat().st_size for path in working.rglob("*") if path.is_file())
        require_space(target, int(stream.num_bytes * 1.01) - written)
        bar = tqdm(total=stream.num_bytes, desc=f"convert {name}", unit="B", unit_scale=True, disable=None)
        ended = threading.Event()

        def report(num_bytes: int) -> None:
            bar.update(num_bytes)
            if ended.is_set():
                raise ConversionError(f"{target} is not written any further; give the same command to go on")

        with bar, ThreadPoolExecutor(1) as beside:  # the probe computes while the disk writes
            shards = beside.submit(stream.write, report)
            try:
                probe = make_probe(config, source, token_ids)
                stored = shards.result()
            except BaseException:
                ended.set()  # or the writer would go on to its end before the error is seen
                raise
        shutil.rmtree(working / layout.HUGGING_FACE, ignore_errors=True)
        carry_small_files(small_files, working / layout.HUGGING_FACE)
        shutil.rmtree(stream.progress)
        manifest = layout.Manifest(
            kind="weights",
            step=0,
            tokens_total=0,
            architecture=arch.to_dict(),
            hugging_face_model=name,
            tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "",
            weights_fingerprint=fingerprint(stored.checksums, precision),
            probe=probe,
            precision=precision,
            padded_vocab_size=padded,
            checksums=stored.checksums,
            lineage=(name,),
            versions=versions,
        )
        must_be_new(target)  # made by others while this was written
        files = {f"{layout.SHARDS}/{file}": record for file, record in stored.files.items()}
        return layout.publish(target, manifest, files)


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


def require_tied_copy(reader: ModelReader, family: Family, arch: Architecture) -> None:
    """Raise `ConversionError` where a tied model also stores an output matrix, and it is not the embedding: then
    `transformers` takes the model for an untied one."""
    (output,) = family.output_rule.hugging_face
    if not arch.tied_embeddings or output not in reader.names:
        return
    (embedding,) = next(rule.hugging_face for rule in family.rules if rule.layout == "vocab")
    if reader.shape(output) != reader.shape(embedding) or any(
        not torch.equal(*(reader.read_range(name, 0, start, end).float() for name in (output, embedding)))
        for start, end in _groups_of_rows(arch.vocab_size)
    ):
        raise ConversionError(
            f"{reader.directory} has tie_word_embeddings=true and a {output} that is not {embedding}; set it to false "
            f"in config.json, or remove {output}"
        )


def _groups_of_rows(count: int, at_once: int = 1024) -> Iterator[tuple[int, int]]:
    for start in range(0, count, at_once):
        yield start, min(start + at_once, count)


def stored_precision(reader: ModelReader) -> Precision:
    """Precision that holds the source's weights exactly: bf16 if all are bf16, else fp32."""
    ignored = family_of(str(reader.config.get("model_type"))).ignored
    codes = {reader.code(name) for name in reader.names if not name.endswith(ignored)}
    if not codes <= {"BF16", "F16", "F32"}:
        raise ConversionError(
            f"the model has tensors of {', '.join(sorted(codes))}; only BF16, F16 and F32 are read: "
            "give the model before quantisation"
        )
    return "bf16" if codes == {"BF16"} else "fp32"


def content_identity(reader: ModelReader) -> str:
    """Names a model directory without reading all of it: sha256 over configuration, headers, and the first and last
    kilobyte of every tensor."""
    digest = hashlib.sha256(json.dumps(reader.config, sort_keys=True).encode())
    for name in sorted(reader.names):
        digest.update(f"{name} {reader.shape(name)} {reader.code(name)}".encode())
        digest.update(reader.ends(name))
    return digest.hexdigest()


def files_identity(paths: Iterable[Path]) -> str:
    """Names files as they are now, by size and time: an interrupted conversion goes on only where they have not been
    written since."""
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
