"""The index of a checkpoint is data; a pickle that wants more is refused before anything of it runs."""

from __future__ import annotations

import pickle
from pathlib import Path, PosixPath

import pytest

from cptron.checkpoint.untrusted import read_index
from cptron.errors import CheckpointError


def with_index(directory: Path, content: bytes) -> Path:
    (directory / ".metadata").write_bytes(content)
    return directory


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def stack_global(module: str, name: str, argument: str) -> bytes:
    """A protocol 4 pickle that calls `module.name(argument)`; dotted names walk through attributes."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def test_a_planted_call_is_refused_and_not_made(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    shards = with_index(tmp_path, pickle.dumps(Touch(planted)))
    with pytest.raises(CheckpointError, match="may run code"):
        read_index(shards)
    assert not planted.exists()
    pickle.loads(pickle.dumps(Touch(planted)))
    assert planted.exists(), "the payload must be one that works"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "getattr"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "os"),
        ("torch", "load"),
    ],
)
def test_ways_around_by_attribute_are_refused(module: str, name: str, tmp_path: Path) -> None:
    """Dotted names and modules that import dangerous ones are no way around."""
    shards = with_index(tmp_path, stack_global(module, name, "true"))
    with pytest.raises(CheckpointError, match="may run code"):
        read_index(shards)


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"not a pickle"])
def test_a_damaged_index_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_index(with_index(tmp_path, content))


def test_a_real_index_is_accepted(tmp_path: Path) -> None:
    """What torch writes for tensors of several types."""
    import torch
    import torch.distributed.checkpoint as dcp

    tensors = {"a": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.arange(3)}
    dcp.save(tensors, checkpoint_id=str(tmp_path / "shards"), no_dist=True)
    read_index(tmp_path / "shards")


def test_a_class_is_not_changed(tmp_path: Path) -> None:
    """State may be given to an object, and with pickle to a class: it would stay changed for the whole process."""
    index = b"\x80\x04cpathlib\nPosixPath\nN}X\x07\x00\x00\x00planted"
    with pytest.raises(CheckpointError, match="it changes a class"):
        read_index(with_index(tmp_path, index + b"K\x01s\x86b."))
    assert not hasattr(Path, "planted") and not hasattr(PosixPath, "planted")
