"""Shards that others wrote, read without megatron-core: whole or an error, and no code of theirs runs.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from cptron.checkpoint.torch_dist import TorchDistReader
from cptron.errors import CheckpointError

WHOLE_RC = torch.arange(24, dtype=torch.float32).view(6, 4)


def written(directory: Path) -> TorchDistReader:
    """As torch writes it."""
    dcp.save({"a": WHOLE_RC}, checkpoint_id=str(directory), no_dist=True)
    return TorchDistReader(directory)


def test_any_block_is_read(tmp_path: Path) -> None:
    """The whole tensor and a box of it."""
    reader = written(tmp_path)
    assert reader.keys == {"a"} and reader.shape("a") == (6, 4) and reader.dtype("a") == torch.float32
    assert torch.equal(reader.read("a"), WHOLE_RC)
    assert torch.equal(reader.read("a", (3, 1), (2, 2)), WHOLE_RC[3:5, 1:3])


def test_what_is_not_there_is_never_made_up(tmp_path: Path) -> None:
    """An index that lacks a block, and one whose block is of another shape than the file's."""
    reader = written(tmp_path)
    (chunk,) = reader._chunks["a"]
    reader._chunks["a"] = []
    with pytest.raises(CheckpointError, match="holds 0 of 24 elements of a"):
        reader.read("a")
    reader._chunks["a"] = [replace(chunk, sizes=(4, 4))]
    with pytest.raises(CheckpointError, match="holds another block of a than its index says"):
        reader.read("a", (0, 0), (4, 4))


def test_no_code_in_a_block_is_run(tmp_path: Path) -> None:
    """A chunk is a pickle, and anybody can write one."""
    planted = tmp_path / "planted"

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (planted,)

    reader = written(tmp_path / "shards")
    (chunk,) = reader._chunks["a"]
    stream = io.BytesIO()
    torch.save({"tensor": WHOLE_RC, "x": Planted()}, stream)
    (tmp_path / "shards" / chunk.file).write_bytes(stream.getvalue())
    reader._chunks["a"] = [replace(chunk, start=0, length=len(stream.getvalue()))]
    with pytest.raises(CheckpointError, match="cannot be read"):
        reader.read("a")
    assert not planted.exists()
