"""Linear combinations of models, computed block by block.

Place in the flow: what `cptron merge-weights` runs. Every input is read once, however many outputs there are.
Invariant: sums are kept in fp64 and rounded once; nothing appears under an output's name unless every input was finite
and all outputs are whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tqdm import tqdm

from cptron.convert.small_files import carry_small_files, find_tokenizer
from cptron.durable import must_be_new, new_directory, require_space
from cptron.errors import ConversionError
from cptron.versions import installed_versions
from cptron.weights.compare import require_mergeable
from cptron.weights.recipes import Output, Recipe
from cptron.weights.rounding import round_once
from cptron.weights.tensors import Block, TensorInfo, WeightStream, WeightWriter, blocks_of

RECORD = "merge.json"
RECORDS = (RECORD, "repair.json")
"""Histories of a directory, which are not those of what is made of it."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CONFIG_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def combine(
    recipe: Recipe,
    *,
    dtype: str = "stored",
    files_from: Path | None = None,
    different_tokenizers: bool = False,
    different_configs: bool = False,
) -> list[str]:
    """Write every output of `recipe`; returns notes for the reader.

    `dtype`: `stored` is that of the first input, tensor by tensor. `files_from`: the input whose config, tokenizer and
    other small files are carried (default: the one that the recipe names, else the first). Raises `ConversionError`,
    with nothing left behind under an output's name.
    """
    for output in recipe.outputs:
        must_be_new(output.directory)
    files_from = _carried(recipe, files_from or recipe.files_from)
    with ExitStack() as stack:
        models = [WeightStream(path) for path in recipe.inputs]
        notes = require_mergeable(
            models, different_tokenizers=different_tokenizers, different_configs=different_configs
        )
        infos = {
            name: TensorInfo(info.shape, DTYPES.get(dtype, info.dtype))
            for name, info in models[0].infos.items()
        }
        _require_space([output.directory for output in recipe.outputs], infos)
        record = _record(recipe, models, dtype, files_from, notes)
        working = [stack.enter_context(new_directory(output.directory)) for output in recipe.outputs]
        _write_weights(models, recipe.outputs, working, infos)
        for directory, output in zip(working, recipe.outputs, strict=True):
            carry_files(files_from, directory, infos)
            weights = dict(zip(map(str, recipe.inputs), output.shares, strict=True))
            _write_json(directory / RECORD, record | {"weights": weights})
    return notes


def _require_space(outputs: Sequence[Path], infos: Mapping[str, TensorInfo]) -> None:
    """Raise `ConversionError` when the file systems of the outputs are clearly too full for them."""
    needed: dict[int, tuple[Path, int]] = {}
    num_bytes = sum(info.nbytes for info in infos.values())
    for output in outputs:
        parent = next(path for path in output.absolute().parents if path.exists())
        _, so_far = needed.get(parent.stat().st_dev, (output, 0))
        needed[parent.stat().st_dev] = (output, so_far + num_bytes)
    for output, num_bytes in needed.values():
        require_space(output, num_bytes)


def carry_files(source: Path, target: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Copy the small files of a model beside new weights; its config names their type if they have only one."""
    carry_small_files(source, target)
    for name in RECORDS:
        (target / name).unlink(missing_ok=True)
    dtypes = {info.dtype for info in infos.values()}
    if len(dtypes) == 1:
        config = json.loads((target / "config.json").read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = CONFIG_DTYPES[dtypes.pop()]
        _write_json(target / "config.json", config)


def require_finite(values: torch.Tensor, directory: Path, name: str) -> None:
    """Raise `ConversionError` where a block of an input holds NaN or infinity."""
    if not bool(values.isfinite().all()):
        raise ConversionError(
            f"{directory} has NaN or infinity in {name}, and weights must be finite; take another checkpoint "
            "(cptron health lists all such tensors)"
        )


def _write_weights(
    models: Sequence[WeightStream],
    outputs: Sequence[Output],
    working: Sequence[Path],
    infos: Mapping[str, TensorInfo],
) -> None:
    with ExitStack() as stack:
        writers = [WeightWriter(directory, infos) for directory in working]
        for writer in writers:
            stack.callback(writer.close)
        total_bytes = sum(info.nbytes for info in infos.values())
        bar = stack.enter_context(tqdm(total=total_bytes, unit="B", unit_scale=True, disable=None))
        for name in writers[0].order:
            for block in blocks_of(infos[name].shape):
                for output, writer, sum_ in zip(
                    outputs, writers, _sums(models, outputs, name, block), strict=True
                ):
                    values = round_once(sum_, infos[name].dtype)
                    if not bool(values.isfinite().all()):
                        raise ConversionError(
                            f"{output.directory} would have values in {name} that {CONFIG_DTYPES[values.dtype]} cannot "
                            "hold; use --dtype bf16 or fp32"
                        )
                    writer.write(values)
                bar.update(values.nbytes)
        for writer in writers:
            writer.finish()


def _sums(
    models: Sequence[WeightStream], outputs: Sequence[Output], name: str, block: Block
) -> list[torch.Tensor]:
    """The block of every output in fp64. A weight of zero adds nothing, not even the sign of a zero."""
    sums: list[torch.Tensor | None] = [None] * len(outputs)
    for i, model in enumerate(models):
        values = model.block(name, block).double()
        require_finite(values, model.directory, name)
        for j, output in enumerate(outputs):
            weight, so_far = output.weights[i], sums[j]
            if weight == 0:
                continue
            sums[j] = values * weight if so_far is None else so_far.add_(values, alpha=weight)
    return [
        torch.zeros_like(values) if sum_ is None else sum_.div_(output.divisor)
        for sum_, output in zip(sums, outputs, strict=True)
    ]


def _carried(recipe: Recipe, files_from: Path | None) -> Path:
    """The input whose small files are carried."""
    wanted = files_from or recipe.inputs[0]
    for path in recipe.inputs:
        if path.resolve() == wanted.resolve():
            return path
    raise ConversionError(
        f"--files-from {wanted} is not one of the merged models; name one of {', '.join(map(str, recipe.inputs))}"
    )


def _record(
    recipe: Recipe, models: Sequence[WeightStream], dtype: str, files_from: Path, notes: list[str]
) -> dict[str, object]:
    """How an output was made; its weights are added."""
    inputs = {}
    for model in models:
        tokenizer = find_tokenizer(model.directory)
        inputs[str(model.directory)] = {
            "config_sha256": hashlib.sha256((model.directory / "config.json").read_bytes()).hexdigest(),
            "headers_sha256": model.headers_sha256(),
            "tokenizer_fingerprint": tokenizer.fingerprint if tokenizer else "",
        }
    return {
        "recipe": recipe.name,
        **recipe.settings,
        "inputs": inputs,
        "dtype": dtype,
        "files_from": str(files_from),
        "notes": notes,
        "versions": installed_versions(),
    }


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
