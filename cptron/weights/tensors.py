"""Weights of a Hugging Face directory as streams: any block of a tensor is read alone, a model written block by block.

Place in the flow: the only file of this room that touches safetensors; merging, health and repair are loops over
blocks. Invariant: memory is that of a few blocks, whatever the size of a tensor, a shard or a model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cptron.convert.safetensors_io import ModelReader
from cptron.convert.safetensors_write import MAX_SHARD_BYTES, ShardFile, TensorSpec, plan_shards, write_index
from cptron.errors import ConversionError

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block, at most; a block is contiguous in its tensor."""
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""safetensors' code of each type that holds plain weights."""
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

    def block(self, name: str, block: Block) -> torch.Tensor:
        """One block of a tensor, as stored."""
        return self.read(name)[block]

    def headers_sha256(self) -> str:
        """Hash of what the files hold: names, types, shapes and places of all tensors, not their values."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                length = file.read(8)
                digest.update(length + file.read(int.from_bytes(length, "little")))
        return digest.hexdigest()

    def _info(self, name: str) -> TensorInfo:
        code = self.code(name)
        if code not in DTYPES:
            raise ConversionError(
                f"{self.directory} has {name} of type {code}; only bf16, fp16 and fp32 are read: give the model "
                "before it was quantised"
            )
        return TensorInfo(self.shape(name), DTYPES[code])

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
        # wider types first, so that every value lies at a multiple of its size
        self.order = sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name))
        specs = [TensorSpec(name, infos[name].shape, infos[name].dtype) for name in self.order]
        self._directory, self._plans = directory, plan_shards(specs, max_shard_bytes)
        self._files: list[ShardFile] = []

    def write(self, block: torch.Tensor) -> None:
        """Append the next block."""
        while block.numel() and (not self._files or self._files[-1].is_full):
            self._begin_file()
        if block.numel():
            self._files[-1].append(block)

    def finish(self) -> None:
        """Close the last file and write the index where there are several."""
        while len(self._files) < len(self._plans):  # none left, or some that have no values
            self._begin_file()
        self._files[-1].close()
        write_index(self._directory, self._plans)

    def close(self) -> None:
        """Close the open file as it is."""
        if self._files:
            self._files[-1].abandon()

    def _begin_file(self) -> None:
        if self._files:
            self._files[-1].close()
        self._files.append(ShardFile(self._directory, self._plans[len(self._files)]))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)
