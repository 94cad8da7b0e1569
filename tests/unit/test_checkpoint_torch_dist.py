"""Shards read without megatron-core: whole or an error, and no code of theirs runs.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from cptron.checkpoint.torch_dist import Chunk, ChunkFile, ShardReader, write_index
from cptron.errors import CheckpointError

WHOLE_RC = torch.arange(24, dtype=torch.float32).view(6, 4)


def written(directory: Path) -> ShardReader:
    """A tensor in two blocks."""
    directory.mkdir()
    with ChunkFile(directory, 0) as file:
        file.write("a", (0, 0), WHOLE_RC[:4])
        file.write("a", (4, 0), WHOLE_RC[4:])
    write_index(directory, {"a": ((6, 4), torch.float32)}, file.chunks)
    return ShardReader(directory)


def test_any_block_is_read(tmp_path: Path) -> None:
    """Within a chunk and over both; a part of a larger tensor is stored without the rest."""
    reader = written(tmp_path / "shards")
    assert torch.equal(reader.read("a"), WHOLE_RC)
    assert torch.equal(reader.read("a", (3, 1), (2, 2)), WHOLE_RC[3:5, 1:3])
    large = torch.zeros(1000, 1000)
    with ChunkFile(tmp_path, 1) as file:
        file.write("a", (0, 0), large[:1])
    assert (tmp_path / file.name).stat().st_size < 10_000


def test_what_is_not_there_is_never_made_up(tmp_path: Path) -> None:
    """An index that lacks a block: memory as it was found is no weight."""
    reader = written(tmp_path / "shards")
    reader._chunks["a"].pop()
    assert torch.equal(reader.read("a", (0, 0), (4, 4)), WHOLE_RC[:4])
    for offsets, sizes, held in (((0, 0), (6, 4), 16), ((5, 0), (1, 4), 0)):
        with pytest.raises(CheckpointError, match=rf"holds {held} of {sizes[0] * sizes[1]} elements of a"):
            reader.read("a", offsets, sizes)


def test_a_block_of_another_shape_is_refused(tmp_path: Path) -> None:
    """The index says 2 rows, the file has others."""
    reader = written(tmp_path / "shards")
    first, second = reader._chunks["a"]
    wrong = Chunk("a", second.offsets, second.sizes, first.file, first.start, first.length)
    reader._chunks["a"] = [first, wrong]
    with pytest.raises(CheckpointError, match="holds another block of a than its index says"):
        reader.read("a")


def test_no_code_in_a_block_is_run(tmp_path: Path) -> None:
    """A chunk is a pickle, and anybody can write one."""

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "planted",)

    reader = written(tmp_path / "shards")
    first, second = reader._chunks["a"]
    stream = io.BytesIO()
    torch.save({"tensor": WHOLE_RC, "x": Planted()}, stream)
    (tmp_path / "shards" / "__1_0.distcp").write_bytes(stream.getvalue())
    size = len(stream.getvalue())
    reader._chunks["a"] = [first, Chunk("a", second.offsets, second.sizes, "__1_0.distcp", 0, size)]
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp cannot be read"):
        reader.read("a")
    assert not (tmp_path / "planted").exists()
