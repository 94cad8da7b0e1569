"""Weights of a Hugging Face directory as streams: any block of a tensor is read alone, a model written block by block.

Place in the flow: the only file of this room that touches safetensors; merging, health and repair are loops over
blocks. Invariant: memory is that of a few blocks, whatever the size of a tensor, a shard or a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from cptron.convert.safetensors_io import INDEX, SINGLE, ModelReader
from cptron.errors import ConversionError

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block, at most; a block is contiguous in its tensor."""
MAX_SHARD_BYTES = 5 * 10**9
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""safetensors' code of each type that holds plain weights."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"

Block = tuple[slice, ...]
"""Which part of a tensor: one slice for each of its first dimensions."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def blocks_of(shape: tuple[int, ...], limit: int | None = None) -> Iterator[Block]:
    """Blocks that make up a tensor, in the order of its bytes, each of at most `limit` elements."""
    limit = limit or BLOCK_ELEMENTS
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    if row <= limit:
        step = max(1, limit // max(1, row))
        for start in range(0, shape[0], step):
            yield (slice(start, min(start + step, shape[0])),)
        return
    for index in range(shape[0]):
        for rest in blocks_of(shape[1:], limit):
            yield (slice(index, index + 1), *rest)


class WeightStream(ModelReader):
    """The model in a directory: tensors by name, read in blocks. Raises `ConversionError` where it is damaged or
    quantised."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.infos = {name: self._info(name) for name in sorted(self.names)}
        """Every tensor that counts: without the copy of the embedding that some tied models store as output."""
        stated = self.config.get("tie_word_embeddings")
        self.tied = OUTPUT not in self.names if stated is None else bool(stated)
        if self.tied and OUTPUT in self.infos and EMBEDDING in self.infos:
            self._require_copy()
            del self.infos[OUTPUT]

    def __enter__(self) -> WeightStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def block(self, name: str, block: Block) -> torch.Tensor:
        """One block of a tensor, as stored."""
        return self._files[name].get_slice(name)[block]  # type: ignore[no-any-return]

    def headers_sha256(self) -> str:
        """Hash of what the files hold: names, types, shapes and places of all tensors, not their values."""
        digest = hashlib.sha256()
        for path in self._weight_files():
            with path.open("rb") as file:
                length = file.read(8)
                digest.update(length + file.read(int.from_bytes(length, "little")))
        return digest.hexdigest()

    def _info(self, name: str) -> TensorInfo:
        code = self.dtype(name)
        if code not in DTYPES:
            raise ConversionError(
                f"{self.directory} has {name} of type {code}; only bf16, fp16 and fp32 are read: give the model "
                "before it was quantised"
            )
        return TensorInfo(tuple(self._files[name].get_slice(name).get_shape()), DTYPES[code])

    def _require_copy(self) -> None:
        embedding, output = self.infos[EMBEDDING], self.infos[OUTPUT]
        if embedding.shape == output.shape and all(
            _same(self.block(EMBEDDING, block), self.block(OUTPUT, block))
            for block in blocks_of(embedding.shape)
        ):
            return
        raise ConversionError(
            f"{self.directory} has tie_word_embeddings=true and a {OUTPUT} that is not {EMBEDDING}; set it to false "
            f"in config.json, or remove {OUTPUT}"
        )


class WeightWriter:
    """A model of known tensors, written in order: for each name of `order` all of its blocks."""

    def __init__(
        self, directory: Path, infos: Mapping[str, TensorInfo], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self.directory, self._infos = directory, infos
        self._shards = _plan_shards(infos, max_shard_bytes)
        self.order = [name for names in self._shards for name in names]
        self._files = _shard_names(len(self._shards))
        self._open: BinaryIO | None = None
        self._ends: list[int] = []  # of the open file: where each tensor ends
        self._next = 0  # the shard to open when the open one is full

    def write(self, block: torch.Tensor) -> None:
        """Append the next block."""
        values = block.contiguous().reshape(-1).view(torch.uint8).numpy().data
        if not values.nbytes:
            return
        while self._open is None or self._open.tell() == self._ends[-1]:
            self._begin_shard()
        self._open.write(values)

    def finish(self) -> None:
        """Close the last file and write the index where there are several."""
        while self._next < len(self._shards):  # none left, or some that have no values
            self._begin_shard()
        assert self._open is not None and self._open.tell() == self._ends[-1], "blocks are missing"
        self.close()
        if len(self._files) > 1:
            weight_map = {
                name: file for file, names in zip(self._files, self._shards, strict=True) for name in names
            }
            total_bytes = sum(info.nbytes for info in self._infos.values())
            index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            (self.directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def close(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open.close()

    def _begin_shard(self) -> None:
        assert self._open is None or self._open.tell() == self._ends[-1], "blocks are missing"
        self.close()
        names, self._ends = self._shards[self._next], [0]
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name in names:
            info, start = self._infos[name], self._ends[-1]
            self._ends.append(start + info.nbytes)
            header[name] = {
                "dtype": CODES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [start, self._ends[-1]],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._open = (self.directory / self._files[self._next]).open("wb")
        self._open.write(len(text).to_bytes(8, "little") + text)
        self._ends = [end + self._open.tell() for end in self._ends]
        self._next += 1


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)


def _plan_shards(infos: Mapping[str, TensorInfo], max_shard_bytes: int) -> list[list[str]]:
    """Names of the tensors of each file; wider types first, so that every value lies at a multiple of its size."""
    shards: list[list[str]] = [[]]
    held = 0
    for name in sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name)):
        if shards[-1] and held + infos[name].nbytes > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += infos[name].nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
