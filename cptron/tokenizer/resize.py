"""A Hugging Face model with rows for an extended tokenizer, written as a directory or imported as a checkpoint.

Place in the flow: `cptron tokenizer resize`, and `cptron convert --tokenizer`; after `extend`. Invariant: a few blocks
of a tensor and the new rows are in memory, and what is published loads in `transformers` with its tokenizer.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from cptron.checkpoint import layout
from cptron.convert.exported_config import check_export
from cptron.convert.hf_import import (
    content_identity,
    describe,
    files_identity,
    stored_precision,
    write_checkpoint,
)
from cptron.convert.safetensors_io import read_json
from cptron.convert.safetensors_write import TensorSpec
from cptron.convert.small_files import carry_small_files
from cptron.durable import must_be_new, new_directory, require_space
from cptron.tokenizer.extended import CARRIED
from cptron.tokenizer.initial_rows import Init
from cptron.tokenizer.resized import ResizedModel, resized_model
from cptron.versions import installed_versions
from cptron.weights.tensors import DTYPES, TensorInfo, WeightWriter, blocks_of

RECORD = "resize.json"
OTHER_VOCABULARIES = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""Of the base, in other formats: they know none of the new tokens."""
MODELS_OWN = ("generation_config.json",)


def resize(
    directory: Path,
    tokenizer: Path,
    target: Path,
    init: Init = "subtoken_mean",
    vectors: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the model of `directory` with rows for `tokenizer` to the new directory `target`; what was done. Raises
    `ConversionError` or DataError, with nothing left under the final name."""
    must_be_new(target)
    model = resized_model(directory, tokenizer, init, vectors, seed)
    family, _ = describe(model)
    names = [name for name in model.names if not name.endswith(family.ignored)]
    infos = {name: TensorInfo(model.shape(name), DTYPES[model.code(name)]) for name in names}
    require_space(target, sum(info.nbytes for info in infos.values()))
    record = {
        "source": str(directory),
        "tokenizer": str(tokenizer),
        "tokenizer_fingerprint": model.extended.tokenizer.fingerprint,
        "init": init,
        "seed": seed,
        **model.facts(),
        "versions": installed_versions(),
    }
    with new_directory(target) as working:
        with closing(WeightWriter(working, infos)) as writer:
            for name in writer.order:
                for block in blocks_of(infos[name].shape):
                    writer.write(_block(model, name, block))
            writer.finish()
        write_small_files(model, tokenizer, working)
        (working / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        check_export(working, [TensorSpec(name, info.shape, info.dtype) for name, info in infos.items()])
    return record


def import_resized(
    directory: Path,
    tokenizer: Path,
    target: Path,
    init: Init = "subtoken_mean",
    vectors: Path | None = None,
    seed: int = 0,
) -> layout.Manifest:
    """The same as a new checkpoint `target`, without a directory in between."""
    must_be_new(target)
    model = resized_model(directory, tokenizer, init, vectors, seed)
    family, arch = describe(model)
    with tempfile.TemporaryDirectory() as small_files:
        write_small_files(model, tokenizer, Path(small_files))
        return write_checkpoint(
            model,
            family,
            arch,
            target,
            config=model.config,
            precision=stored_precision(model),
            small_files=Path(small_files),
            identity=content_identity(model) + files_identity(model.files) + model.rows_sha256(),
            name=directory.resolve().name,
        )


def write_small_files(model: ResizedModel, tokenizer: Path, target: Path) -> None:
    """What is beside the weights: the model's own files, its config with the new size, and the new tokenizer."""
    carry_small_files(model.directory, target)
    for name in (*OTHER_VOCABULARIES, RECORD):
        (target / name).unlink(missing_ok=True)
    source = tokenizer if tokenizer.is_dir() else tokenizer.parent
    for name in ("tokenizer.json", *CARRIED):
        if name not in MODELS_OWN and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    config = read_json(target / "config.json")
    config["vocab_size"] = model.vocab_size
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _block(model: ResizedModel, name: str, block: tuple[slice, ...]) -> torch.Tensor:
    if not block:
        return model.read(name)
    rows, *rest = block
    return model.read_range(name, 0, rows.start, rows.stop)[(slice(None), *rest)]
