"""Pickled models: converted without running what is in them, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cptron.convert.pickled import PICKLED_INDEX, convert_pickled
from cptron.convert.safetensors_io import ModelReader
from cptron.errors import ConversionError


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """Two files and their index."""
    directory = tmp_path / "pickled"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    torch.save({"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(3)}, directory / "pytorch_model-1.bin")
    torch.save({"c": torch.ones(2, dtype=torch.bfloat16)}, directory / "pytorch_model-2.bin")
    index = {
        "weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-1.bin", "c": "pytorch_model-2.bin"}
    }
    (directory / PICKLED_INDEX).write_text(json.dumps(index))
    return directory


def test_tensors_are_the_same(pickled: Path, tmp_path: Path) -> None:
    """With several files, one, and one of before torch 1.6."""
    assert convert_pickled(pickled, tmp_path / "out") == 3
    reader = ModelReader(tmp_path / "out")
    assert torch.equal(reader.read("a"), torch.arange(6.0).view(2, 3).t())
    assert reader.read("c").dtype == torch.bfloat16
    (pickled / PICKLED_INDEX).unlink()
    (pickled / "pytorch_model-2.bin").unlink()
    old = {"a": torch.ones(2)}
    torch.save(old, pickled / "pytorch_model-1.bin", _use_new_zipfile_serialization=False)
    assert convert_pickled(pickled, tmp_path / "single") == 1
    assert torch.equal(ModelReader(tmp_path / "single").read("a"), old["a"])


def test_code_is_refused_and_not_run(pickled: Path, tmp_path: Path) -> None:
    """And nothing is left that looks finished."""
    planted = tmp_path / "planted"
    torch.save({"a": torch.ones(2), "b": Touch(planted)}, pickled / "pytorch_model-1.bin")
    with pytest.raises(ConversionError, match=r"pytorch_model-1\.bin is refused .*holds more than tensors"):
        convert_pickled(pickled, tmp_path / "out")
    assert not planted.exists() and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".writing_*"))


def test_other_content_is_refused(pickled: Path, tmp_path: Path) -> None:
    """Missing files, an index that leads out, no dictionary of tensors, damage."""
    torch.save([torch.ones(2)], pickled / "pytorch_model-1.bin")
    with pytest.raises(ConversionError, match="holds no dictionary of tensors"):
        convert_pickled(pickled, tmp_path / "out")
    torch.save({"a": torch.ones(2, device="meta")}, pickled / "pytorch_model-1.bin")
    with pytest.raises(ConversionError, match="only plain tensors with a name can be written"):
        convert_pickled(pickled, tmp_path / "out")
    (pickled / "pytorch_model-1.bin").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ConversionError, match="is refused"):
        convert_pickled(pickled, tmp_path / "out")
    (pickled / "pytorch_model-1.bin").unlink()
    with pytest.raises(ConversionError, match=r"pytorch_model-1\.bin does not exist"):
        convert_pickled(pickled, tmp_path / "out")
    for weight_map in ({"a": "../pytorch_model-1.bin"}, {"a": ["x"]}, {}, "x"):
        (pickled / PICKLED_INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ConversionError, match="no weight_map of files beside it"):
            convert_pickled(pickled, tmp_path / "out")
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin does not exist"):
        convert_pickled(tmp_path, tmp_path / "out")
