"""Weights of any source -> `torch_dist` shards, file by file on threads.

Place in the flow: the middle of an import. Invariant: every parameter is written once and whole; a file counts when all
of it is on disk and its record says so, so that an interrupted import goes on with the files that are missing.

The blocks are an eighth of a tensor, as tensor parallel ranks cut it: what is in memory is small, and a rank that loads
reads little more than its own part.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cptron.checkpoint.block_file import BlockFile, FileRecord
from cptron.checkpoint.blocks import Block, TensorRecord, write_index
from cptron.checkpoint.checksum import MODULUS, Checksums, as_text, checksum
from cptron.checkpoint.names import stored_key, stored_name
from cptron.checkpoint.tensor_bytes import bytes_of, dtype_name
from cptron.checkpoint.torch_dist import write_torch_index
from cptron.convert.source import WeightSource
from cptron.convert.weight_map import Part, layer_by_layer, layers_of, megatron_shape, read_part
from cptron.durable import replace_text
from cptron.errors import CheckpointError
from cptron.json_text import parse_json
from cptron.model.architecture import Architecture
from cptron.model.families.family import Family, TensorRule, size_of

FILE_BYTES = 10**9
SMALLEST_BLOCK = 2**20
MEMORY_BYTES = 15 * 10**8
"""What workers may hold together, beside the largest tensor."""

Report = Callable[[int], object]
"""Told how many bytes are done, as they are; an error of its own ends the writing."""


def num_workers(bytes_each: int = 0) -> int:
    """Threads that work side by side: a disk is the limit long before many cores are; and memory, where each of them
    needs `bytes_each`."""
    fitting = MEMORY_BYTES // bytes_each if bytes_each else 4
    return max(1, min(4, fitting, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, slots=True)
class Shards:
    """What was written."""

    checksums: Checksums
    """Of every parameter, by its stored name."""
    files: dict[str, FileRecord]
    """Of every file of blocks, hashed as it was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStream:
    """What is written where."""

    source: WeightSource
    family: Family
    arch: Architecture
    padded_vocab: int
    dtype: torch.dtype
    shards: Path
    progress: Path
    """Directory of the records of finished files."""
    identity: str
    """Of source and plan; records of another are not believed."""
    common: dict[str, object] = field(default_factory=dict)
    """megatron-core's common state."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(self._bytes_of(rule) for rule, _ in layer_by_layer(self.family, self.arch))

    @property
    def num_files(self) -> int:
        """Files of blocks."""
        return len(self._files())

    @property
    def largest_block_bytes(self) -> int:
        """The largest block; each worker has its source and a copy of one in memory."""
        return max(
            self._bytes_of(rule) // self._parts_of(rule) for rule, _ in layer_by_layer(self.family, self.arch)
        )

    def write(self, report: Report = lambda _: None) -> Shards:
        """Write what is missing and complete the shards.

        Raises `CheckpointError` when the disk is full.
        """
        self.progress.mkdir(parents=True, exist_ok=True)
        self.shards.mkdir(exist_ok=True)
        files = list(enumerate(self._files()))
        pool = ThreadPoolExecutor(num_workers())
        try:
            records = list(pool.map(lambda item: self._file(item[0], item[1], report), files))
        except OSError as error:
            raise CheckpointError(
                f"{self.shards} cannot be written ({error}); make room, and give the same command to go on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
        blocks = [block for record in records for block in record.blocks]
        self._remove_others({block.file for block in blocks})
        tensors = self._tensors()
        write_index(self.shards, tensors, blocks)
        write_torch_index(self.shards, tensors, blocks, self.common)
        checksums: dict[str, int] = {}
        for record in records:
            checksums |= record.checksums
        return Shards(as_text(checksums), {record.blocks[0].file: record.file for record in records})

    def _files(self) -> list[list[tuple[TensorRule, int]]]:
        target = min(FILE_BYTES, math.ceil(self.num_bytes / num_workers()))
        files: list[list[tuple[TensorRule, int]]] = [[]]
        size = 0
        for rule, layer in layer_by_layer(self.family, self.arch):
            if files[-1] and size + self._bytes_of(rule) > target:
                files.append([])
                size = 0
            files[-1].append((rule, layer))
            size += self._bytes_of(rule)
        return files

    def _bytes_of(self, rule: TensorRule) -> int:
        return math.prod(megatron_shape(rule, self.arch, self.padded_vocab)) * self.dtype.itemsize

    def _tensors(self) -> dict[str, TensorRecord]:
        """Shape and type of every stored tensor, layers stacked."""
        found = {}
        for rule in self.family.rules_for(self.arch):
            key, layer = stored_key(rule.megatron.format(layer=0))
            shape = megatron_shape(rule, self.arch, self.padded_vocab)
            stacked = shape if layer is None else (len(layers_of(rule, self.arch)), *shape)
            found[key] = TensorRecord(stacked, dtype_name(self.dtype))
        return found

    def _remove_others(self, files: set[str]) -> None:
        """Delete what an interrupted writer of another plan left."""
        for path in self.shards.glob("*.distcp"):
            if path.name not in files:
                path.unlink()

    def _file(self, number: int, jobs: list[tuple[TensorRule, int]], report: Report) -> _Record:
        path = self.progress / f"{number:05d}.json"
        done = _Record.read(path, self.identity, self.shards)
        wanted = {stored_name(rule.megatron.format(layer=layer)) for rule, layer in jobs}
        if done is not None and done.checksums.keys() == wanted:  # files are cut by the number of workers
            report(sum(self._bytes_of(rule) for rule, _ in jobs))
            return done
        checksums = {}
        with BlockFile(self.shards, f"__{number}_0.distcp") as file:
            for rule, layer in jobs:
                checksums[stored_name(rule.megatron.format(layer=layer))] = self._parameter(file, rule, layer)
                report(self._bytes_of(rule))
        assert file.record is not None
        record = _Record(self.identity, file.record, file.blocks, checksums)
        record.write(path)
        return record

    def _parameter(self, file: BlockFile, rule: TensorRule, layer: int) -> int:
        """Write one parameter; returns its checksum."""
        key, is_of_layer = stored_key(rule.megatron.format(layer=layer))
        above = [] if is_of_layer is None else [layer]
        parts = self._parts_of(rule)
        total = 0
        for rank in range(parts):
            part = Part(rank, parts)
            tensor = read_part(rule, self.arch, layer, self.source.read_range, self.padded_vocab, part)
            for place, block in _blocks(rule, self.arch, part, tensor.to(self.dtype)):
                total += checksum(block, *place)
                offsets = (*above, *place)[: len(above) + block.dim()]
                sizes = (1,) * len(above) + tuple(block.shape)
                file.write(key, offsets, sizes, dtype_name(self.dtype), bytes_of(block))
        return total % MODULUS

    def _parts_of(self, rule: TensorRule) -> int:
        """Blocks into which a tensor is cut."""
        if rule.cut is None:
            return 1
        cut = megatron_shape(rule, self.arch, self.padded_vocab)[rule.cut]
        if rule.layout in ("qkv", "fused_qkv"):
            cut = self.arch.num_kv_heads
        if rule.layout == "gate_up":
            cut = self.arch.ffn_hidden_size
        allowed = (n for n in (8, 4, 2) if cut % n == 0 and self._bytes_of(rule) // n >= SMALLEST_BLOCK)
        return next(allowed, 1)


def _blocks(
    rule: TensorRule, arch: Architecture, part: Part, tensor: torch.Tensor
) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
    """A part's blocks of the whole tensor, and the row and column at which each begins.

    Gate rows of all parts come before all up rows, as megatron-core stores them.
    """
    if rule.layout == "gate_up":
        width = size_of("ffn", arch)
        for number, half in enumerate(tensor.chunk(2)):
            yield (number * width + part.of(width)[0], 0), half
    elif rule.cut is None:
        yield (0, 0), tensor
    else:
        first = part.rank * tensor.size(rule.cut)
        yield ((first, 0) if rule.cut == 0 else (0, first)), tensor


@dataclass(frozen=True, slots=True)
class _Record:
    """A finished file."""

    identity: str
    file: FileRecord
    blocks: list[Block]
    checksums: dict[str, int]

    def write(self, path: Path) -> None:
        values: dict[str, Any] = {"identity": self.identity, "checksums": self.checksums}
        values |= {"size": self.file.size, "sha256": self.file.sha256}
        replace_text(path, json.dumps({**values, "blocks": [block.to_list() for block in self.blocks]}))

    @classmethod
    def read(cls, path: Path, identity: str, shards: Path) -> _Record | None:
        """The record, if there is one of this identity and the file has its size."""
        try:
            values = parse_json(path.read_text())
            file = FileRecord(int(values["size"]), str(values["sha256"]))
            blocks = [Block.of(block) for block in values["blocks"]]
            record = cls(values["identity"], file, blocks, dict(values["checksums"]))
            whole = (shards / blocks[0].file).stat().st_size == file.size
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        return record if whole and record.identity == identity else None
