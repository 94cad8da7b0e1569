"""Hugging Face model directories: any range of a tensor is read from its file.

Place in the flow: where a conversion reads. Invariant: nothing is unpickled, and no more of a model is in memory than
the tensors in use; what is read is mapped, and unmapped with the tensor.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cptron.errors import ConversionError
from cptron.json_text import is_file_name, parse_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' codes of types."""
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies."""

    path: Path
    start: int
    shape: tuple[int, ...]
    code: str


class ModelReader:
    """Tensors of a Hugging Face model directory. Safe for threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise ConversionError(f"Hugging Face model {directory} does not exist; give a local directory")
        self.config: dict[str, Any] = read_json(directory / "config.json")
        self._tensors: dict[str, _Stored] = {}
        for path, promised in self._weight_files().items():
            found = _read_header(path)
            for name in sorted(found.keys() & self._tensors.keys()):
                raise ConversionError(
                    f"{path} and {self._tensors[name].path} both hold {name}; remove the file that is not of the model"
                )
            for name in sorted(promised - found.keys()):
                raise ConversionError(
                    f"{directory / INDEX} says that {path.name} holds {name}, but it does not; download both again"
                )
            self._tensors |= found

    def _weight_files(self) -> dict[Path, set[str]]:
        """The files, and what the index says that each holds."""
        index = self.directory / INDEX
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ConversionError(
                    f"{index} has weight_map={weight_map!r}, not an object; download it again"
                )
            files: dict[Path, set[str]] = {}
            for name, file in weight_map.items():
                if not is_file_name(file):
                    raise ConversionError(
                        f"{index} has {file!r} for {name}, not a file beside it; download it again"
                    )
                files.setdefault(self.directory / file, set()).add(name)
        else:
            files = {self.directory / SINGLE: set()}
        for path in sorted(files):
            if not path.is_file():
                pickles = sorted(self.directory.glob("*.bin"))
                extra = (
                    f" ({pickles[0].name} is a pickle, which is not read: "
                    f"`cptron safetensors {self.directory} NEW_DIRECTORY` converts it without running its code)"
                    if pickles
                    else ""
                )
                raise ConversionError(f"{path} does not exist{extra}; the model directory is incomplete")
        return dict(sorted(files.items()))

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    @property
    def files(self) -> list[Path]:
        """All files of weights."""
        return sorted({stored.path for stored in self._tensors.values()})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises `ConversionError` when the model has no such tensor."""
        return self._find(name).shape

    def code(self, name: str) -> str:
        """The safetensors code of a tensor's type, such as `BF16`."""
        return self._find(name).code

    def ends(self, name: str, count: int = 1024) -> bytes:
        """The first and the last `count` bytes of a tensor (all of them, where there are fewer)."""
        stored = self._find(name)
        size = torch.Size(stored.shape).numel() * DTYPES[stored.code].itemsize
        with stored.path.open("rb") as stream:
            found = b""
            for offset in (0, max(size - count, 0)):
                stream.seek(stored.start + offset)
                found += stream.read(min(count, size - offset))
        return found

    def read(self, name: str) -> torch.Tensor:
        """One tensor, mapped. Raises `ConversionError` when the model has no such tensor."""
        stored = self._find(name)
        return _mapped(stored, 0, stored.shape)

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        """Entries `start` to `end` along `dim` of a tensor, mapped."""
        stored = self._find(name)
        assert 0 <= start <= end <= stored.shape[dim], (name, start, end)
        if dim > 0:
            return _mapped(stored, 0, stored.shape).narrow(dim, start, end - start)
        row = torch.Size(stored.shape[1:]).numel() * DTYPES[stored.code].itemsize
        return _mapped(stored, start * row, (end - start, *stored.shape[1:]))

    def _find(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise ConversionError(
                f"{self.directory} has no tensor {name}; the weights do not match config.json"
            )
        return self._tensors[name]


def _read_header(path: Path) -> dict[str, _Stored]:
    """All tensors of a file, whose header safetensors has checked against its size. Raises `ConversionError`."""
    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); download it again") from None
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start = 8 + length + entry["data_offsets"][0]
            found[name] = _Stored(path, start, tuple(entry["shape"]), entry["dtype"])
    return found


def _mapped(stored: _Stored, offset: int, shape: Sequence[int]) -> torch.Tensor:
    """`shape` entries of a file from byte `offset` of a tensor on; writing to them harms no file."""
    dtype = DTYPES.get(stored.code)
    if dtype is None:
        raise ConversionError(
            f"{stored.path} has tensors of {stored.code}; only {', '.join(DTYPES)} are read"
        )
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    first = stored.start + offset
    aligned = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        with stored.path.open("rb") as stream:
            length = first - aligned + count * dtype.itemsize
            pages = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_COPY, offset=aligned)
    except (OSError, ValueError) as error:  # gone or cut since its header was read
        raise ConversionError(f"{stored.path} cannot be read ({error}); download it again") from None
    if (first - aligned) % dtype.itemsize:
        with memoryview(pages) as whole, whole[first - aligned :] as values:
            return torch.frombuffer(bytearray(values), dtype=dtype).view(tuple(shape))
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=first - aligned).view(tuple(shape))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ConversionError`."""
    try:
        values = parse_json(path.read_text())
    except OSError:
        raise ConversionError(
            f"{path} does not exist; give a complete Hugging Face model directory"
        ) from None
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise ConversionError(f"{path} holds a {type(values).__name__}, not an object; download it again")
    return values
