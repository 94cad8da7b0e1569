"""Hugging Face directories: damaged ones give one clear line, written ones are read by other libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cptron.convert.hf_import import stored_precision
from cptron.convert.safetensors_io import INDEX, SINGLE, ModelReader
from cptron.convert.safetensors_write import ShardFile, ShardPlan, TensorSpec, plan_shards, write_index
from cptron.errors import ConversionError

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def tensors() -> dict[str, torch.Tensor]:
    """Of several types and sizes, one of them empty of rows."""
    torch.manual_seed(0)
    return {
        "b": torch.randn(5, 7),
        "a": torch.randn(3).to(torch.bfloat16),
        "c": torch.randn(2, 2, 2).half(),
        "d": torch.randn(64, 3),
    }


def write_model(directory: Path, values: dict[str, torch.Tensor], max_shard_bytes: int) -> None:
    """As an export does."""
    specs = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in values.items()]
    plans = plan_shards(specs, max_shard_bytes)
    for plan in plans:
        with ShardFile(directory, plan) as file:
            for spec in plan.specs:
                file.write(spec.name, values[spec.name])
    write_index(directory, plans)


def whole(directory: Path) -> Path:
    """A readable directory with one file of weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), directory / SINGLE)
    return directory


def without_directory(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def with_pickle_only(directory: Path) -> None:
    (directory / SINGLE).rename(directory / "pytorch_model.bin")


def with_missing_shard(directory: Path) -> None:
    (directory / INDEX).write_text(
        json.dumps({"weight_map": {"a": SINGLE, "x": "model-00002-of-00002.safetensors"}})
    )


def with_another_file(directory: Path) -> None:
    save_file({"x": torch.ones(1), "b": tensors()["b"]}, directory / "other.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE, "x": "other.safetensors"}}))


def truncated(keep: float) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / SINGLE
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (without_directory, "does not exist; give a local directory"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "broken config": (lambda d: (d / "config.json").write_text("{,"), "config.json is not valid JSON"),
    "no weights": (lambda d: (d / SINGLE).unlink(), "model.safetensors does not exist"),
    "pickle only": (
        with_pickle_only,
        "pytorch_model.bin is a pickle, which is not read: `cptron safetensors .*` converts it",
    ),
    "missing shard": (with_missing_shard, "model-00002-of-00002.safetensors does not exist"),
    "broken index": (lambda d: (d / INDEX).write_text("["), "index.json is not valid JSON"),
    "index without a map": (lambda d: (d / INDEX).write_text("{}"), "index.json .*weight_map"),
    "config that is a list": (lambda d: (d / "config.json").write_text("[1]"), "config.json"),
    "cut by one byte": (truncated(0.9999), "model.safetensors cannot be read"),
    "cut in half": (truncated(0.5), "model.safetensors cannot be read"),
    "cut in the header": (truncated(0.01), "model.safetensors cannot be read"),
    "empty file": (truncated(0.0), "model.safetensors cannot be read"),
    "index that leads out": (
        lambda d: (d / INDEX).write_text(json.dumps({"weight_map": {"a": f"../{d.name}/{SINGLE}"}})),
        "model.safetensors' for a, not a file beside it",
    ),
    "one tensor in two files": (with_another_file, "both hold b; remove the file that is not of the model"),
    "a pointer to large storage": (
        lambda d: (d / SINGLE).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        "model.safetensors cannot be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_clear_line(case: str, tmp_path: Path) -> None:
    """The file at fault and what to do."""
    damage, message = DAMAGE[case]
    directory = whole(tmp_path / "model")
    damage(directory)
    with pytest.raises(ConversionError, match=message) as error:
        ModelReader(directory)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """Not a KeyError."""
    reader = ModelReader(whole(tmp_path / "model"))
    with pytest.raises(ConversionError, match=r"no tensor model\.norm\.weight"):
        reader.read("model.norm.weight")


@pytest.mark.parametrize("max_shard_bytes", [1, 150, 1000, 10**9])
def test_written_directories_are_read_again(max_shard_bytes: int, tmp_path: Path) -> None:
    """By safetensors itself, by the index, and by our reader; each file within its limit if it holds two."""
    expected = tensors()
    write_model(tmp_path, expected, max_shard_bytes)
    files = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    merged = {name: tensor for file in files.values() for name, tensor in file.items()}
    assert sum(map(len, files.values())) == len(expected)
    for name, tensor in expected.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name], tensor)
    for file in files.values():
        assert len(file) == 1 or sum(tensor.nbytes for tensor in file.values()) <= max_shard_bytes
    if len(files) == 1:
        assert set(files) == {SINGLE}
        assert not (tmp_path / INDEX).exists()
    else:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
        assert index["weight_map"] == {name: file for file, held in files.items() for name in held}
        count = len(files)
        assert sorted(files) == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    reader = ModelReader(tmp_path)
    assert reader.names == set(expected)
    assert all(torch.equal(reader.read(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("max_shard_bytes", [2000, 10**9])
def test_written_directories_are_read_by_transformers(max_shard_bytes: int, tmp_path: Path) -> None:
    """Every weight of a Llama, also where gate and up are two views of one tensor."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "architectures"}))
    expected = model.state_dict()
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp"
        both = torch.cat([expected[f"{prefix}.gate_proj.weight"], expected[f"{prefix}.up_proj.weight"]])
        expected[f"{prefix}.gate_proj.weight"], expected[f"{prefix}.up_proj.weight"] = both.chunk(2)
    write_model(tmp_path, expected, max_shard_bytes)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert (tmp_path / INDEX).exists() == (max_shard_bytes == 2000)
    loaded, notes = LlamaForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    found = loaded.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [(["bfloat16"], "bf16"), (["float32"], "fp32"), (["bfloat16", "float32"], "fp32"), (["float16"], "fp32")],
)
def test_precision_holds_the_weights_exactly(dtypes: list[str], expected: str, tmp_path: Path) -> None:
    """bf16 only if everything is; fp16 has bits that bf16 lacks."""
    directory = whole(tmp_path / "model")
    save_file({name: torch.ones(2, dtype=getattr(torch, name)) for name in dtypes}, directory / SINGLE)
    reader = ModelReader(directory)
    assert stored_precision(reader) == expected


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    """They would need their scales."""
    directory = whole(tmp_path / "model")
    save_file({"a": torch.ones(2, dtype=torch.int8), "b": torch.ones(2)}, directory / SINGLE)
    reader = ModelReader(directory)
    with pytest.raises(ConversionError, match=r"F32, I8; only BF16, F16 and F32"):
        stored_precision(reader)


def test_no_row_beyond_a_tensor_is_read(tmp_path: Path) -> None:
    """It would be another tensor's."""
    directory = whole(tmp_path / "model")
    save_file({"a": torch.zeros(2, 4), "b": torch.ones(2, 4)}, directory / SINGLE)
    reader = ModelReader(directory)
    assert reader.read_range("a", 0, 2, 2).shape == (0, 4)
    for start, end in ((1, 3), (-1, 1)):
        with pytest.raises(AssertionError):
            reader.read_range("a", 0, start, end)


def test_a_file_that_is_cut_later_is_named(tmp_path: Path) -> None:
    """After its header was read, as by another download."""
    directory = whole(tmp_path / "model")
    save_file({"a": torch.zeros(2, 4)}, directory / SINGLE)
    reader = ModelReader(directory)
    (directory / SINGLE).write_bytes((directory / SINGLE).read_bytes()[:-4])
    with pytest.raises(ConversionError, match=r"model\.safetensors cannot be read"):
        reader.read("a")
    (directory / SINGLE).unlink()
    with pytest.raises(ConversionError, match=r"model\.safetensors cannot be read"):
        reader.read("a")


def test_values_anywhere_in_a_file_are_read(tmp_path: Path) -> None:
    """Also at a place that is no multiple of their size: the format allows it."""
    directory = whole(tmp_path / "model")
    values = torch.arange(6, dtype=torch.float32).view(2, 3)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * ((1 - len(header)) % 4)
    (directory / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    reader = ModelReader(directory)
    assert torch.equal(reader.read("a"), values)
    assert reader.read("a").data_ptr() % 4 == 0, "not every processor reads from anywhere"
    assert torch.equal(reader.read_range("a", 0, 1, 2), values[1:])
    assert torch.equal(reader.read_range("a", 1, 1, 3), values[:, 1:])


def test_written_values_begin_at_a_multiple_of_8(tmp_path: Path) -> None:
    """As the format asks for, whatever the length of the header."""
    for length in range(1, 9):
        plan = ShardPlan(SINGLE, (TensorSpec("a" * length, (2,), torch.float32),))
        with ShardFile(tmp_path, plan) as file:
            file.write("a" * length, torch.ones(2))
        assert int.from_bytes((tmp_path / SINGLE).read_bytes()[:8], "little") % 8 == 0
