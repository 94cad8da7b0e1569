"""`cptron safetensors`: a Hugging Face model in pickled files (`.bin`) becomes one in safetensors; no code of it runs.

Place in the flow: before an import, only for models that exist in no other form. Invariant: torch reads the pickles
with `weights_only`, which admits tensors and plain containers; everything else is refused.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import torch

from cptron.checkpoint.untrusted import require_stored
from cptron.convert.safetensors_io import CODES, read_json
from cptron.convert.safetensors_write import ShardFile, ShardPlan, TensorSpec, write_index
from cptron.convert.small_files import carry_small_files
from cptron.durable import new_directory, require_space
from cptron.errors import ConversionError
from cptron.json_text import is_file_name

PICKLED_INDEX = "pytorch_model.bin.index.json"


def main(argv: Sequence[str]) -> int:
    """Run `cptron safetensors PICKLED_MODEL NEW_MODEL`."""
    parser = argparse.ArgumentParser(
        prog="cptron safetensors",
        description="Pickled weights (.bin) -> safetensors, without running their code.",
    )
    parser.add_argument("pickled", type=Path, help="model directory with pytorch_model*.bin")
    parser.add_argument("target", type=Path, help="new directory")
    args = parser.parse_args(argv)
    tensors = convert_pickled(args.pickled, args.target)
    print(f"{args.target}: {tensors} tensors")
    return 0


def convert_pickled(source: Path, target: Path) -> int:
    """Write the model of `source` to the new directory `target`; returns the number of tensors."""
    files = _pickled_files(source)
    require_space(target, sum(path.stat().st_size for path in files))
    with new_directory(target) as working:
        carry_small_files(source, working)
        plans = []
        for number, path in enumerate(files, 1):
            tensors = dict(sorted(_read(path).items()))
            specs = tuple(TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items())
            single = len(files) == 1
            name = "model.safetensors" if single else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            plans.append(ShardPlan(name, specs))
            with ShardFile(working, plans[-1]) as file:
                for name, tensor in tensors.items():
                    file.write(name, tensor.contiguous())
        write_index(working, plans)
    return sum(len(plan.specs) for plan in plans)


def _pickled_files(source: Path) -> list[Path]:
    if (source / PICKLED_INDEX).is_file():
        weight_map = read_json(source / PICKLED_INDEX).get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not names or not all(map(is_file_name, names)):
            raise ConversionError(
                f"{source / PICKLED_INDEX} has no weight_map of files beside it; download it again"
            )
        files = [source / name for name in sorted(set(names))]
    else:
        files = sorted(source.glob("pytorch_model*.bin"))
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise ConversionError(
            f"{missing[0] if missing else source / 'pytorch_model.bin'} does not exist; "
            "give a model directory with pickled weights"
        )
    return files


class _Bounded(io.FileIO):
    """A file of which no more is asked than it has: Python takes memory for what is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._num_bytes = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._num_bytes - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        require_stored(path)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of before torch 1.6 cannot be mapped
            with _Bounded(path) as stream:
                found = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        reason = next(iter(str(error).splitlines()), "") or repr(error)
        raise ConversionError(
            f"{path} is refused ({reason}); it holds more than tensors, or is damaged: ask for the model as safetensors"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ConversionError(f"{path} holds no dictionary of tensors; ask for the model as safetensors")
    for name, tensor in found.items():
        is_plain = (
            tensor.layout == torch.strided and tensor.device.type == "cpu"
        )  # no sparse one, nor one without data
        if not isinstance(name, str) or tensor.dtype not in CODES or not is_plain:
            raise ConversionError(
                f"{path} has {name!r:.80} of type {tensor.dtype}; only plain tensors with a name can be written"
            )
        if tensor.numel() * tensor.itemsize > path.stat().st_size:
            raise ConversionError(
                f"{path} says that {name:.80} has the shape {list(tensor.shape)}, more than the file can hold; it is "
                "damaged: download it again"
            )
    return found
