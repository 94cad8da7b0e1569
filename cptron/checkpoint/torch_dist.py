"""Reads and writes megatron-core's `torch_dist` shards tensor by tensor, without megatron-core and its process groups.

Place in the flow: conversion streams through it, so that a model need not fit in memory. Invariant: what is written
here, `dist_checkpointing` loads under any layout; `ShardReader` reads what any layout saved, and runs no code of it.

The format is torch's distributed checkpoint: files of `torch.save`d chunks, and `.metadata`, which says where each
chunk of each tensor lies.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from cptron.checkpoint.untrusted import read_index
from cptron.errors import CheckpointError

INDEX = ".metadata"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""What megatron-core expects in `metadata.json`."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A block of a stored tensor and where its bytes are."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int

    def to_list(self) -> list[Any]:
        """JSON form; `Chunk.of` inverts it."""
        return [self.key, self.offsets, self.sizes, self.file, self.start, self.length]

    @classmethod
    def of(cls, values: Sequence[Any]) -> Chunk:
        """Rebuild from `to_list` output."""
        key, offsets, sizes, file, start, length = values
        return cls(str(key), tuple(offsets), tuple(sizes), str(file), int(start), int(length))


class ChunkFile:
    """One file of chunks, written from its start to its end within a `with` block, which forces it to disk."""

    def __init__(self, directory: Path, number: int) -> None:
        self.name = f"__{number}_0.distcp"
        self.chunks: list[Chunk] = []
        self._stream = (directory / self.name).open("wb")

    def write(self, key: str, offsets: Sequence[int], tensor: torch.Tensor) -> None:
        """Append the block of tensor `key` that begins at `offsets`; it has as many dimensions as the stored one."""
        if tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)  # torch saves whole storages
        start = self._stream.tell()
        try:
            torch.save(tensor.detach(), self._stream)
        except RuntimeError as error:  # what torch makes of a write that comes short
            raise OSError(f"{self.name}: {str(error).splitlines()[0]}") from None
        length = self._stream.tell() - start
        self.chunks.append(Chunk(key, tuple(offsets), tuple(tensor.shape), self.name, start, length))

    def __enter__(self) -> ChunkFile:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with self._stream:
            if error is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())


def write_index(
    directory: Path,
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]],
    chunks: Sequence[Chunk],
    common: dict[str, Any] | None = None,
) -> None:
    """Complete the shards in `directory`: `tensors` gives shape and type of each key, `chunks` all of their blocks.

    `common` is what megatron-core calls the common state. Blocks that do not fill a tensor exactly are a bug.
    """
    by_key: dict[str, list[Chunk]] = {key: [] for key in tensors}
    for chunk in chunks:
        by_key[chunk.key].append(chunk)
    for key, (shape, _) in tensors.items():
        filled = sum(math.prod(chunk.sizes) for chunk in by_key[key])
        assert filled == math.prod(shape), f"{key}: chunks hold {filled} of {math.prod(shape)} elements"
    index = Metadata(
        state_dict_metadata={
            key: TensorStorageMetadata(
                properties=TensorProperties(dtype=dtype),
                size=torch.Size(shape),
                chunks=[
                    ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in by_key[key]
                ],
            )
            for key, (shape, dtype) in tensors.items()
        },
        storage_data={
            MetadataIndex(c.key, torch.Size(c.offsets)): _StorageInfo(c.file, c.start, c.length)
            for c in chunks
        },
        storage_meta=StorageMeta(),
    )
    (directory / INDEX).write_bytes(pickle.dumps(index))
    (directory / "metadata.json").write_text(json.dumps(FORMAT))
    torch.save(common or {}, directory / "common.pt")


class ShardReader:
    """The tensors of shards, by key; any block of them. Raises `CheckpointError` on damage. Safe for threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = read_index(directory)
        found = getattr(index, "state_dict_metadata", None)
        places = getattr(index, "storage_data", None)
        if not isinstance(found, dict) or not isinstance(places, dict):
            raise CheckpointError(f"{directory / INDEX} is no index of tensors; use another checkpoint")
        self._tensors = {
            key: value for key, value in found.items() if isinstance(value, TensorStorageMetadata)
        }
        self._chunks: dict[str, list[Chunk]] = {key: [] for key in self._tensors}
        try:
            for place, info in places.items():
                if place.fqn in self._tensors:
                    self._chunks[place.fqn].append(self._chunk(place, info))
        except (AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{directory / INDEX} is damaged ({error}); use another checkpoint"
            ) from None

    def _chunk(self, place: Any, info: Any) -> Chunk:
        sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in self._tensors[place.fqn].chunks}
        offsets = tuple(place.offset or ())
        if Path(info.relative_path).name != info.relative_path:
            raise CheckpointError(
                f"{self.directory / INDEX} refers to {info.relative_path!r}, outside of the checkpoint; do not use it"
            )
        if offsets not in sizes:
            raise CheckpointError(
                f"{self.directory / INDEX} has no size for a block of {place.fqn}; it is damaged"
            )
        return Chunk(place.fqn, offsets, sizes[offsets], info.relative_path, info.offset, info.length)

    @property
    def keys(self) -> set[str]:
        """Names of all stored tensors."""
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Type of a stored tensor."""
        return self._tensors[key].properties.dtype

    def read(
        self, key: str, offsets: Sequence[int] | None = None, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The block of `sizes` that begins at `offsets`; without them the whole tensor."""
        offsets = [0] * len(self.shape(key)) if offsets is None else offsets
        sizes = self.shape(key) if sizes is None else sizes
        block = torch.empty(tuple(sizes), dtype=self.dtype(key))
        filled = 0
        targets: list[Slices] = []
        for chunk in self._chunks[key]:
            inside = _overlap(offsets, sizes, chunk)
            if inside is None:
                continue
            target, source = inside
            if any(_meet(target, other) for other in targets):
                raise CheckpointError(
                    f"{self.directory / INDEX} has blocks of {key} that overlap; it is damaged"
                )
            targets.append(target)
            block[target].copy_(self._load(chunk)[source])
            filled += block[target].numel()
        if filled != block.numel():
            raise CheckpointError(
                f"{self.directory} holds {filled} of {block.numel()} elements of {key} at {list(offsets)}; "
                "it is damaged: use another checkpoint"
            )
        return block

    def _load(self, chunk: Chunk) -> torch.Tensor:
        path = self.directory / chunk.file
        try:
            with path.open("rb") as stream:
                stream.seek(chunk.start)
                view: Any = _View(stream, chunk.start, chunk.length)
                tensor = torch.load(view, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive fails in any way it likes
            raise CheckpointError(f"{path} cannot be read ({error!r:.200}); use another checkpoint") from None
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != chunk.sizes:
            raise CheckpointError(
                f"{path} holds another block of {chunk.key} than its index says; it is damaged"
            )
        return tensor


Slices = tuple[slice, ...]


def _overlap(offsets: Sequence[int], sizes: Sequence[int], chunk: Chunk) -> tuple[Slices, Slices] | None:
    """Where the wanted block and a chunk meet: within the block, and within the chunk."""
    target, source = [], []
    for first, size, other, other_size in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True):
        start, end = max(first, other), min(first + size, other + other_size)
        if start >= end:
            return None
        target.append(slice(start - first, end - first))
        source.append(slice(start - other, end - other))
    return tuple(target), tuple(source)


def _meet(one: Slices, other: Slices) -> bool:
    """Two blocks have elements in common."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


class _View(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, stream: Any, start: int, length: int) -> None:
        super().__init__()
        self._stream, self._start, self._length = stream, start, length

    def seekable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Place within the stretch."""
        return int(self._stream.tell()) - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place within the stretch."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        self._stream.seek(self._start + max(base + offset, 0))
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, no further than the end of the stretch."""
        left = max(self._length - self.tell(), 0)
        return int(self._stream.readinto(memoryview(buffer)[:left]))
