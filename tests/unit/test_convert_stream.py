"""Streams of weights into shards: whole, cut as planned, resumable, and read again by any block."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_arch import SMALL
from test_convert_weight_map import architectures, hugging_face_tensors

from cptron.checkpoint.checksum import checksum
from cptron.checkpoint.names import stored_name
from cptron.checkpoint.reader import ShardReader
from cptron.checkpoint.torch_dist import TorchDistReader
from cptron.convert import shard_stream
from cptron.convert.shard_stream import ShardStream
from cptron.convert.source import ShardSource
from cptron.convert.weight_map import Part, layers_of, read_part, to_megatron
from cptron.durable import begin_directory, require_space, resumable_directory, working_directory
from cptron.errors import CheckpointError, ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families import family_of

LLAMA = family_of("llama")
Tensors = dict[str, torch.Tensor]


class Memory:
    """`WeightSource` over tensors at hand, which counts what is read, and may fail at some tensor."""

    def __init__(self, tensors: Tensors, fails_at: str = "") -> None:
        self.tensors, self.fails_at, self.reads = tensors, fails_at, 0
        self.lock = threading.Lock()

    def read(self, name: str) -> torch.Tensor:
        with self.lock:
            self.reads += 1
        if name == self.fails_at:
            raise OSError(28, "No space left on device")
        return self.tensors[name]

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        return self.read(name).narrow(dim, start, end - start)


def stream_of(source: Memory, directory: Path, arch: Architecture, **changes: Any) -> ShardStream:
    given = {
        "source": source,
        "family": LLAMA,
        "arch": arch,
        "padded_vocab": 256,
        "dtype": torch.float32,
        "shards": directory / "shards",
        "progress": directory / "progress",
        "identity": "this",
    }
    return ShardStream(**{**given, **changes})


@pytest.fixture(params=[1, 10**9], ids=["many small blocks", "whole tensors"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Smallest block; 1 cuts every tensor."""
    monkeypatch.setattr(shard_stream, "SMALLEST_BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("file_bytes", [1, 700, 10**9])
def test_shards_hold_every_tensor(
    file_bytes: int, block_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks and files: read back whole and by ranges, with the checksums of the whole tensors."""
    monkeypatch.setattr(shard_stream, "FILE_BYTES", file_bytes)
    arch = replace(SMALL, num_layers=3)
    tensors = hugging_face_tensors(arch)
    checksums = stream_of(Memory(tensors), tmp_path, arch).write().checksums
    source = ShardSource(ShardReader(tmp_path / "shards"), LLAMA, arch, checksums)
    assert source.names == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(source.read(name), tensor), name
        assert torch.equal(source.read_range(name, 0, 1, len(tensor)), tensor[1:])
        if tensor.dim() == 2:
            assert torch.equal(source.read_range(name, 1, 1, 3), tensor[:, 1:3])
    megatron = dict(to_megatron(LLAMA, arch, tensors.__getitem__, 256))
    assert {stored_name(name) for name in megatron} == checksums.keys()
    for name, tensor in megatron.items():
        assert checksums[stored_name(name)] == f"{checksum(tensor):016x}"


@settings(deadline=None, max_examples=40)
@given(architectures(), st.sampled_from([1, 2, 4]))
def test_parts_are_the_ranks_parts(arch: Architecture, tp: int) -> None:
    """A tensor rank's part is what megatron-core would cut from the whole tensor."""
    arch = replace(arch, num_kv_heads=4, num_attention_heads=8, ffn_hidden_size=arch.ffn_hidden_size * 4)
    tensors = hugging_face_tensors(arch)
    read = Memory(tensors).read_range
    for rule in LLAMA.rules_for(arch):
        for layer in layers_of(rule, arch):
            whole = read_part(rule, arch, layer, read, 256)
            parts = [read_part(rule, arch, layer, read, 256, Part(rank, tp)) for rank in range(tp)]
            if rule.cut is None:
                expected = [whole] * tp
            elif rule.layout == "gate_up":
                gates, ups = (half.chunk(tp) for half in whole.chunk(2))
                expected = [torch.cat(pair) for pair in zip(gates, ups, strict=True)]
            else:
                expected = list(whole.chunk(tp, dim=rule.cut))
            for part, wanted in zip(parts, expected, strict=True):
                assert torch.equal(part, wanted), rule.megatron


def test_an_interrupted_stream_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is not read again; other records, and files cut short, are not believed."""
    monkeypatch.setattr(shard_stream, "FILE_BYTES", 600)
    monkeypatch.setattr(shard_stream, "num_workers", lambda: 1)
    tensors = hugging_face_tensors(SMALL)
    whole = Memory(tensors)
    (tmp_path / "whole").mkdir()
    expected = stream_of(whole, tmp_path / "whole", SMALL).write()
    failing = Memory(tensors, fails_at="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(CheckpointError, match="make room, and give the same command to go on"):
        stream_of(failing, tmp_path, SMALL).write()
    assert not (tmp_path / "shards" / ".metadata").exists(), "unfinished shards must not look finished"
    again = Memory(tensors)
    assert stream_of(again, tmp_path, SMALL).write() == expected
    assert 0 < again.reads < whole.reads
    other = Memory(tensors)
    assert stream_of(other, tmp_path, SMALL, identity="another source").write() == expected
    assert other.reads == whole.reads
    first = tmp_path / "shards" / "__0_0.distcp"
    first.write_bytes(first.read_bytes()[:-1])
    once_more = Memory(tensors)
    assert stream_of(once_more, tmp_path, SMALL, identity="another source").write() == expected
    assert 0 < once_more.reads < whole.reads
    source = ShardSource(ShardReader(tmp_path / "shards"), LLAMA, SMALL, expected.checksums)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in tensors.items())


def test_damage_is_named(tmp_path: Path) -> None:
    """A flipped bit in a shard: by the tensor whose checksum it changes. A file that is cut, or gone: by the file."""
    tensors = hugging_face_tensors(SMALL)
    stream = stream_of(Memory(tensors), tmp_path, SMALL)
    checksums = stream.write().checksums
    reader = ShardReader(tmp_path / "shards")
    source = ShardSource(reader, LLAMA, SMALL, checksums)
    name = "model.layers.1.self_attn.o_proj.weight"
    needle = tensors[name].numpy().tobytes()
    (path,) = [path for path in (tmp_path / "shards").glob("*.distcp") if needle in path.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(needle) + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.self_attention\.linear_proj\.weight"):
        source.read(name)
    path.write_bytes(content[: content.index(bytes(needle[6:])) + 8])
    with pytest.raises(CheckpointError, match=f"{path.name} cannot be read"):
        source.read(name)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name} cannot be read"):
        source.read(name)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """Before anything is read: a shape, a missing tensor, no model at all."""
    stream_of(Memory(hugging_face_tensors(SMALL)), tmp_path, SMALL).write()
    reader = ShardReader(tmp_path / "shards")
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight of shape \[24, 8\].*implies \[32, 8\]"):
        ShardSource(reader, LLAMA, replace(SMALL, ffn_hidden_size=16))
    with pytest.raises(CheckpointError, match="of another model, or incomplete"):
        del reader._blocks["decoder.final_layernorm.weight"]
        ShardSource(reader, LLAMA, SMALL)
    reader._blocks.clear()
    with pytest.raises(CheckpointError, match="holds no GPT model"):
        ShardSource(reader, LLAMA, SMALL)


def test_no_file_outside_is_read(tmp_path: Path) -> None:
    """An index that points elsewhere."""
    import pickle

    stream_of(Memory(hugging_face_tensors(SMALL)), tmp_path, SMALL).write()
    path = tmp_path / "shards" / ".metadata"
    index = pickle.loads(path.read_bytes())
    for info in index.storage_data.values():
        info.relative_path = "../shards/" + info.relative_path
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        TorchDistReader(tmp_path / "shards")


def test_crafted_indices_are_refused(tmp_path: Path) -> None:
    """Blocks that overlap, so that others are missing though the count is right; places that are none."""
    import pickle

    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    stream_of(Memory(hugging_face_tensors(SMALL)), tmp_path, SMALL).write()
    path = tmp_path / "shards" / ".metadata"
    index = pickle.loads(path.read_bytes())
    key = "decoder.layers.mlp.linear_fc2.weight"
    first, second = (MetadataIndex(key, torch.Size((layer, 0, 0))) for layer in range(2))
    stored = index.state_dict_metadata[key]
    assert {tuple(chunk.offsets) for chunk in stored.chunks} == {(0, 0, 0), (1, 0, 0)}
    whole, where = stored.chunks[0].sizes, index.storage_data.pop(second)
    stored.chunks[1] = ChunkStorageMetadata(torch.Size((0, 0, 0)), whole)
    index.storage_data[MetadataIndex(key, torch.Size((0, 0, 0)), 1)] = where
    doubled = dict(index.storage_data)
    path.write_bytes(pickle.dumps(index))
    reader = TorchDistReader(tmp_path / "shards")
    reader._chunks[key] = [reader._chunks[key][0]] * 2
    with pytest.raises(CheckpointError, match="overlap"):
        reader.read(key)
    index.storage_data = {"not a place": doubled[first]}
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="is damaged"):
        TorchDistReader(tmp_path / "shards")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """The second is told; what an interrupted one left is kept; a finished target is not written again."""
    final = tmp_path / "out"
    with resumable_directory(final) as working:
        (working / "kept").write_text("x")
        with (
            pytest.raises(ConversionError, match="is being written by another process"),
            resumable_directory(final),
        ):
            pass
    with resumable_directory(final) as working:
        assert (working / "kept").is_file()
    begin_directory(final)
    assert not list(working_directory(final).iterdir())
    final.mkdir()
    with pytest.raises(ConversionError, match="already exists"), resumable_directory(final):
        pass


def test_space_is_checked_first(tmp_path: Path) -> None:
    """Before the first byte, also where the directory does not exist yet."""
    require_space(tmp_path / "a" / "b", 1000)
    with pytest.raises(ConversionError, match=r"b needs 1000000000000\.00 GB, but .* are free; make room"):
        require_space(tmp_path / "a" / "b", 10**21)


def test_records_are_plain(tmp_path: Path) -> None:
    """JSON, so that a damaged one is seen and passed over."""
    stream = stream_of(Memory(hugging_face_tensors(SMALL)), tmp_path, SMALL)
    expected = stream.write()
    for path in stream.progress.iterdir():
        assert json.loads(path.read_text())["identity"] == "this"
        path.write_text("{")
    assert stream.write() == expected


def test_parts_of_a_stored_tensor_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is written in eight blocks is read and compared as a whole, not eight times."""
    monkeypatch.setattr(shard_stream, "SMALLEST_BLOCK", 1)
    monkeypatch.setattr(shard_stream, "num_workers", lambda: 1)
    arch = replace(SMALL, num_attention_heads=8, num_kv_heads=8, ffn_hidden_size=16)
    checksums = stream_of(Memory(hugging_face_tensors(arch)), tmp_path, arch).write().checksums
    source = ShardSource(ShardReader(tmp_path / "shards"), LLAMA, arch, checksums)
    reads, megatron = [], ShardSource.megatron
    monkeypatch.setattr(
        ShardSource, "megatron", lambda *words: (reads.append(words[1:]), megatron(*words))[1]
    )
    (tmp_path / "again").mkdir()
    assert stream_of(source, tmp_path / "again", arch).write().checksums == checksums  # type: ignore[arg-type]
    assert len(reads) == len(set(reads)) > 0
