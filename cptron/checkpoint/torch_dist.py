"""torch's distributed checkpoint format, for others: its index beside our shards, and a reader of what others wrote.

Place in the flow: every checkpoint gets the index, so that megatron-core and torch load it; `cptron convert --megatron`
reads Megatron-LM's. Invariant: nothing of ours is read back from it, and no code that others' files hold is run.

The format: files of `torch.save`d chunks, and `.metadata`, which says where each chunk of each tensor lies.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Mapping, Sequence
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

from cptron.checkpoint.blocks import Block, TensorRecord
from cptron.checkpoint.reader import numel, overlap, require_apart, require_filled
from cptron.checkpoint.tensor_bytes import DTYPES
from cptron.checkpoint.untrusted import read_index, require_stored
from cptron.errors import CheckpointError
from cptron.json_text import is_file_name

INDEX = ".metadata"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
"""What megatron-core expects in `metadata.json`."""


def write_torch_index(
    directory: Path,
    tensors: Mapping[str, TensorRecord],
    blocks: Sequence[Block],
    common: dict[str, Any] | None = None,
) -> None:
    """Make the shards in `directory` loadable by torch and megatron-core. `common` is what megatron-core calls the
    common state."""
    by_key: dict[str, list[Block]] = {key: [] for key in tensors}
    for block in blocks:
        by_key[block.key].append(block)
    index = Metadata(
        state_dict_metadata={
            key: TensorStorageMetadata(
                properties=TensorProperties(dtype=DTYPES[record.dtype]),
                size=torch.Size(record.shape),
                chunks=[
                    ChunkStorageMetadata(torch.Size(b.offsets), torch.Size(b.sizes)) for b in by_key[key]
                ],
            )
            for key, record in tensors.items()
        },
        storage_data={
            MetadataIndex(b.key, torch.Size(b.offsets)): _StorageInfo(b.file, b.start, b.length)
            for b in blocks
        },
        storage_meta=StorageMeta(),
    )
    (directory / INDEX).write_bytes(pickle.dumps(index))
    (directory / "metadata.json").write_text(json.dumps(FORMAT))
    torch.save(common or {}, directory / "common.pt")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A block of a stored tensor and where its bytes are."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class TorchDistReader:
    """The tensors of shards that others wrote, by key; any block of them. Raises `CheckpointError` on damage. Safe for
    threads."""

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
        self._chunks: dict[str, list[_Chunk]] = {key: [] for key in self._tensors}
        try:
            self._facts = {key: _facts(value) for key, value in self._tensors.items()}
            sizes = {
                key: {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in value.chunks}
                for key, value in self._tensors.items()
            }
            for place, info in places.items():
                if place.fqn in self._tensors:
                    self._chunks[place.fqn].append(self._chunk(place, info, sizes[place.fqn]))
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{directory / INDEX} is damaged ({error!r:.200}); use another checkpoint"
            ) from None

    def _chunk(self, place: Any, info: Any, sizes: Mapping[Any, Any]) -> _Chunk:
        offsets = tuple(place.offset or ())
        if not is_file_name(info.relative_path):
            raise CheckpointError(
                f"{self.directory / INDEX} refers to {info.relative_path!r}, outside of the checkpoint; do not use it"
            )
        if offsets not in sizes:
            raise CheckpointError(
                f"{self.directory / INDEX} has no size for a block of {place.fqn}; it is damaged"
            )
        return _Chunk(place.fqn, offsets, sizes[offsets], info.relative_path, info.offset, info.length)

    @property
    def keys(self) -> set[str]:
        """Names of all stored tensors."""
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self._facts[key][0]

    def dtype(self, key: str) -> torch.dtype:
        """Type of a stored tensor."""
        return self._facts[key][1]

    def read(
        self, key: str, offsets: Sequence[int] | None = None, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The block of `sizes` that begins at `offsets`; without them the whole tensor."""
        offsets = [0] * len(self.shape(key)) if offsets is None else offsets
        sizes = self.shape(key) if sizes is None else sizes
        self._require_room(key)
        block = torch.empty(tuple(sizes), dtype=self.dtype(key))
        found = [
            (chunk, *inside)
            for chunk in self._chunks[key]
            if (inside := overlap(offsets, sizes, chunk.offsets, chunk.sizes)) is not None
        ]
        targets = [target for _, target, _ in found]
        require_apart(self.directory, key, targets)
        require_filled(self.directory, key, offsets, sum(map(numel, targets)), block.numel())
        for chunk, target, source in found:
            block[target].copy_(self._load(chunk)[source])
        return block

    def _require_room(self, key: str) -> None:
        """Raise unless the files of a tensor's chunks can hold it: memory is taken for what there is alone."""
        shape, dtype = self._facts[key]
        if not self._chunks[key]:
            require_filled(self.directory, key, [0] * len(shape), 0, math.prod(shape))
        paths = {self.directory / chunk.file for chunk in self._chunks[key]}
        held = sum(path.stat().st_size for path in paths if path.is_file())
        if math.prod(shape) * dtype.itemsize > held:
            raise CheckpointError(
                f"{self.directory / INDEX} says that {key!r:.80} has the shape {list(shape)}, its files {held} bytes; "
                "it is damaged: use another checkpoint"
            )

    def _load(self, chunk: _Chunk) -> torch.Tensor:
        path = self.directory / chunk.file
        try:
            with path.open("rb") as stream:
                view: Any = _View(stream, chunk.start, chunk.length)
                require_stored(view)
                view.seek(0)
                tensor = torch.load(view, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive fails in any way it likes
            raise CheckpointError(f"{path} cannot be read ({error!r:.200}); use another checkpoint") from None
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != chunk.sizes:
            raise CheckpointError(
                f"{path} holds another block of {chunk.key} than its index says; it is damaged"
            )
        return tensor


def _facts(tensor: TensorStorageMetadata) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type. Raises TypeError or AttributeError where these are something else."""
    shape, dtype = tuple(tensor.size), tensor.properties.dtype
    if not isinstance(dtype, torch.dtype) or not all(type(size) is int and size >= 0 for size in shape):
        raise TypeError(f"a tensor of shape {shape!r:.80} and type {dtype!r:.40}")
    return shape, dtype


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

    def read(self, size: int | None = -1, /) -> bytes | None:
        """No more than is left: memory is taken for what is asked."""
        left = max(self._length - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, no further than the end of the stretch."""
        left = max(self._length - self.tell(), 0)
        return int(self._stream.readinto(memoryview(buffer)[:left]))
