"""Hugging Face model directories: read tensors one at a time, write shards with an index.

Place in the flow: both ends of conversion. Invariant: a directory under its final name is complete, and
nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cptron.errors import ConversionError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class ModelReader:
    """Tensors of a Hugging Face model directory, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise ConversionError(f"Hugging Face model {directory} does not exist; give a local directory")
        self.config: dict[str, Any] = _read_json(directory / "config.json")
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in self._weight_files():
            try:
                handle = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ConversionError(f"{path} cannot be read ({error}); download it again") from None
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                self._files[name] = handle

    def _weight_files(self) -> list[Path]:
        index = self.directory / INDEX
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ConversionError(
                    f"{index} has weight_map={weight_map!r}, not an object; download it again"
                )
            names = sorted(set(weight_map.values()))
            paths = [self.directory / name for name in names]
        else:
            paths = [self.directory / SINGLE]
        for path in paths:
            if not path.is_file():
                pickles = sorted(self.directory.glob("pytorch_model*.bin"))
                extra = (
                    f" ({pickles[0].name} is a pickle, which is not read; save the model as safetensors)"
                    if pickles
                    else ""
                )
                raise ConversionError(f"{path} does not exist{extra}; the model directory is incomplete")
        return paths

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def read(self, name: str) -> torch.Tensor:
        """One tensor. Raises `ConversionError` when the model has no such tensor."""
        if name not in self._files:
            raise ConversionError(
                f"{self.directory} has no tensor {name}; the weights do not match config.json"
            )
        return self._files[name].get_tensor(name)  # type: ignore[no-any-return]

    def dtype(self, name: str) -> str:
        """The safetensors code of a tensor's type, such as `BF16`; only the header is read."""
        return str(self._files[name].get_slice(name).get_dtype())

    def close(self) -> None:
        """Unmap the files."""
        self._stack.close()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise ConversionError(
            f"{path} does not exist; give a complete Hugging Face model directory"
        ) from None
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise ConversionError(f"{path} holds a {type(values).__name__}, not an object; download it again")
    return values


def write_model(
    directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write tensors as safetensors: one file, or several with an index once they exceed `max_shard_bytes`."""
    parts: list[list[str]] = []
    total_bytes = 0
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = 0
    for name, tensor in tensors:
        if shard and shard_bytes + tensor.nbytes > max_shard_bytes:
            parts.append(_write_part(directory, len(parts), shard))
            shard, shard_bytes = {}, 0
        shard[name] = tensor
        shard_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    parts.append(_write_part(directory, len(parts), shard))
    _name_parts(directory, parts, total_bytes)


def _write_part(directory: Path, number: int, shard: dict[str, torch.Tensor]) -> list[str]:
    save_file(shard, str(directory / f"part_{number:05d}.safetensors"), metadata={"format": "pt"})
    return list(shard)


def _name_parts(directory: Path, parts: list[list[str]], total_bytes: int) -> None:
    """Give the parts their conventional names, which hold the number of parts, and write the index."""
    if len(parts) == 1:
        (directory / "part_00000.safetensors").rename(directory / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(parts):
        final = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (directory / f"part_{number:05d}.safetensors").rename(directory / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
