"""Blocks and their index: whole or an error, readable by torch and by zip, and nothing of them is unpickled.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

import cptron.checkpoint.reader as reader_of_blocks
from cptron.checkpoint.block_file import BlockFile
from cptron.checkpoint.blocks import INDEX, Block, TensorRecord, read_index, write_index
from cptron.checkpoint.boxes import boxes, pieces
from cptron.checkpoint.reader import ShardReader, require_apart
from cptron.checkpoint.tensor_bytes import DTYPES, bytes_of
from cptron.checkpoint.torch_dist import write_torch_index
from cptron.errors import CheckpointError

WHOLE_RC = torch.arange(24, dtype=torch.float32).view(6, 4)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(shapes, st.data())
def test_boxes_of_a_stretch_are_its_elements_in_order(shape: list[int], data: st.DataObject) -> None:
    """Against numpy, for any stretch of any shape; and cut into pieces they are the same."""
    numel = math.prod(shape)
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    most = data.draw(st.integers(1, 12))
    array = np.arange(numel).reshape(shape)

    def elements(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> list[int]:
        window = tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
        found: list[int] = array[window].reshape(-1).tolist()
        return found

    found = list(boxes(start, stop, shape))
    assert [x for box in found for x in elements(*box)] == list(range(start, stop))
    assert len(found) <= 2 * len(shape) - 1
    assert [x for box in found for piece in pieces(box, most) for x in elements(*piece)] == list(
        range(start, stop)
    )


def written(
    directory: Path, whole: torch.Tensor, cuts: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> ShardReader:
    """A tensor `a` stored in the boxes `cuts`."""
    directory.mkdir(exist_ok=True)
    dtype = next(name for name, found in DTYPES.items() if found == whole.dtype)
    with BlockFile(directory, "__0_0.distcp") as file:
        for offsets, sizes in cuts:
            window = tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
            file.write("a", offsets, sizes, dtype, bytes_of(whole[window]))
    tensors = {"a": TensorRecord(tuple(whole.shape), dtype)}
    write_index(directory, tensors, file.blocks, {"optimizer_step": 7})
    write_torch_index(directory, tensors, file.blocks)
    assert file.record is not None
    content = (directory / file.name).read_bytes()
    assert (file.record.size, file.record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    return ShardReader(directory)


@given(shapes, st.sampled_from(sorted(DTYPES)), st.data())
def test_any_box_is_read_from_any_cut(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: str, data: st.DataObject
) -> None:
    """Stored by stretches, as ranks own them; read as another layout wants it, also in another type."""
    numel = math.prod(shape)
    whole = torch.arange(numel, dtype=torch.float32).reshape(shape).to(DTYPES[dtype])
    ends = sorted({0, numel, *data.draw(st.lists(st.integers(0, numel), max_size=4))})
    cuts = [box for start, stop in itertools.pairwise(ends) for box in boxes(start, stop, shape)]
    reader = written(tmp_path_factory.mktemp("shards"), whole, cuts)
    offsets = [data.draw(st.integers(0, size - 1)) for size in shape]
    sizes = [data.draw(st.integers(1, size - first)) for size, first in zip(shape, offsets, strict=True)]
    window = tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
    assert torch.equal(reader.read("a", offsets, sizes), whole[window])
    other = torch.full(sizes, -1, dtype=torch.float64)
    reader.read_into("a", offsets, other)
    assert torch.equal(other, whole[window].double())
    assert torch.equal(reader.read("a"), whole) and reader.common == {"optimizer_step": 7}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_torch_and_zip_read_what_is_written(dtype: str, tmp_path: Path) -> None:
    """Independent readers: torch's own distributed loader, `torch.load` of one block, and zip's checksums."""
    whole = WHOLE_RC.to(DTYPES[dtype])
    reader = written(tmp_path, whole, [((0, 0), (1, 4)), ((1, 0), (5, 2)), ((1, 2), (5, 2))])
    target = {"a": torch.empty(6, 4, dtype=DTYPES[dtype])}
    dcp.load(target, checkpoint_id=str(tmp_path), no_dist=True)
    assert torch.equal(target["a"], whole)
    for block in reader._blocks["a"]:
        content = (tmp_path / block.file).read_bytes()[block.start : block.start + block.length]
        first = torch.load(io.BytesIO(content), weights_only=True).view(-1)[0]
        assert torch.equal(first, whole[block.offsets])
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
        assert block.data % 64 == 0


@given(st.lists(shapes.filter(lambda shape: len(shape) == 2), max_size=8), st.data())
def test_overlaps_are_found(sizes: list[list[int]], data: st.DataObject) -> None:
    """Against an array in which each box counts its elements."""
    boxes_of = [[data.draw(st.integers(0, 8)) for _ in shape] for shape in sizes]
    targets = [
        tuple(slice(first, first + size) for first, size in zip(box, shape, strict=True))
        for box, shape in zip(boxes_of, sizes, strict=True)
    ]
    count = np.zeros((13, 13), dtype=int)
    for target in targets:
        count[target] += 1
    if count.max() > 1:
        with pytest.raises(CheckpointError, match="overlap"):
            require_apart(Path("x"), "a", targets)
    else:
        require_apart(Path("x"), "a", targets)


def test_a_read_looks_at_few_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stack of layers at those of its own layer, in number."""
    whole = torch.arange(600.0).view(100, 3, 2)
    cuts = [((layer, row, 0), (1, 1, 2)) for layer in range(100) for row in range(3)]
    reader = written(tmp_path, whole, [cuts[-1], *cuts[:-1]])
    looked: list[object] = []
    overlap = reader_of_blocks.overlap
    monkeypatch.setattr(
        reader_of_blocks, "overlap", lambda *words: [looked.append(words), overlap(*words)][1]
    )
    for layer in (0, 57, 99):
        assert torch.equal(reader.read("a", (layer, 0, 0), (1, 3, 2)), whole[layer : layer + 1])
    assert len(looked) == 9
    assert torch.equal(reader.read("a", (98, 1, 0), (2, 2, 1)), whole[98:, 1:, :1])


def test_what_is_not_there_is_never_made_up(tmp_path: Path) -> None:
    """An index that lacks a block, or has one twice: memory as it was found is no weight."""
    reader = written(tmp_path, WHOLE_RC, [((0, 0), (4, 4)), ((4, 0), (2, 4))])
    last = reader._blocks["a"].pop()
    assert torch.equal(reader.read("a", (0, 0), (4, 4)), WHOLE_RC[:4])
    for offsets, sizes, held in (((0, 0), (6, 4), 16), ((5, 0), (1, 4), 0)):
        with pytest.raises(CheckpointError, match=rf"holds {held} of {sizes[0] * sizes[1]} elements of a"):
            reader.read("a", offsets, sizes)
    reader._blocks["a"] += [last, last]
    for offsets, sizes in (((0, 0), (6, 4)), ((4, 0), (2, 4))):
        with pytest.raises(CheckpointError, match="overlap"):
            reader.read("a", offsets, sizes)
    (tmp_path / "__0_0.distcp").write_bytes((tmp_path / "__0_0.distcp").read_bytes()[: last.data])
    reader._blocks["a"].pop()
    with pytest.raises(CheckpointError, match="cannot be read"):
        reader.read("a")


DAMAGE = {
    "no blocks": lambda v: v.pop("blocks"),
    "blocks are a number": lambda v: v.update(blocks=3),
    "tensor of no type": lambda v: v["tensors"].update(a=[[6, 4], "int7"]),
    "a shape below zero": lambda v: v["tensors"].update(a=[[-6, 4], "float32"]),
    "offset below zero": lambda v: v["blocks"][0].__setitem__(1, [-1, 0]),
    "beyond the tensor": lambda v: v["blocks"][0].__setitem__(1, [5, 0]),
    "sizes that are huge": lambda v: v["blocks"][0].__setitem__(2, [2**61, 4]),
    "another directory": lambda v: v["blocks"][0].__setitem__(3, "../x"),
    "more bytes than sizes": lambda v: v["blocks"][0].__setitem__(5, 8),
    "data before the archive": lambda v: (
        v["blocks"][0].__setitem__(6, 0) or v["blocks"][0].__setitem__(4, 64)
    ),
    "an unknown tensor": lambda v: v["blocks"][0].__setitem__(0, "b"),
    "a truth value": lambda v: v["blocks"][0].__setitem__(4, False),
    "another dimension": lambda v: v["blocks"][0].__setitem__(1, [0]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_index_is_one_clear_error(case: str, tmp_path: Path) -> None:
    """Whatever it says, nothing beyond its files is read and nothing large is made."""
    written(tmp_path, WHOLE_RC, [((0, 0), (6, 4))])
    values = json.loads((tmp_path / INDEX).read_text())
    DAMAGE[case](values)
    (tmp_path / INDEX).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"index\.json cannot be read"):
        read_index(tmp_path)


def test_planted_pickles_are_never_read(tmp_path: Path) -> None:
    """`.metadata`, `common.pt` and the description in a block's archive are for others; a load works without them."""
    reader = written(tmp_path, WHOLE_RC, [((0, 0), (6, 4))])
    planted = tmp_path / "planted"

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (planted,)

    torch.save(Touch(), tmp_path / "common.pt")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Touch()))
    (block,) = reader._blocks["a"]
    content = bytearray((tmp_path / block.file).read_bytes())
    payload = b"cos\nsystem\n(Xtrue\n0tR."
    at = content.index(b"\x80\x02ctorch")
    content[at : at + len(payload)] = payload
    (tmp_path / block.file).write_bytes(bytes(content))
    assert torch.equal(ShardReader(tmp_path).read("a"), WHOLE_RC)
    assert not planted.exists()


def test_blocks_that_do_not_fill_a_tensor_are_a_bug(tmp_path: Path) -> None:
    """Found when the index is written, not when the run is resumed."""
    block = Block("a", (0,), (3,), "f", 0, 12, 0)
    with pytest.raises(AssertionError, match="3 of"):
        write_index(tmp_path, {"a": TensorRecord((4,), "float32")}, [block])
