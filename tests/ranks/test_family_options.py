"""Checkpoints, adapters and FP8 of layers that Llama has not: biases, norms behind linears, norms of projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapter_calls
import numpy as np
import pytest
import torch
from composition_calls import Batch, assemble
from conversion_calls import convert
from family_calls import logits_and_steps, stored_weights
from family_models import CASES, VOCAB, WIDTH, FamilyCase, make_model
from rank_calls import command

from cptron.config.schema import AdapterConfig, Fp8Config
from cptron.convert.peft_export import export_peft
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.weight_map import to_megatron
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.options import ModelOptions
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

TP2 = Layout(tp=2, sequence_parallel=True)
NAMES = ("qwen2", "gemma3", "phi3-long", "olmo2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face directories by case."""
    found = {}
    for case in CASES:
        if case.id in NAMES:
            found[case.id] = tmp_path_factory.mktemp(case.id)
            make_model(case, found[case.id])
    return found


@pytest.fixture(scope="module")
def converted(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by case."""
    root = tmp_path_factory.mktemp("converted")
    for name, source in models.items():
        run_ranks(convert, 1, str(source), str(root / name))
    return {name: root / name for name in models}


def described(directory: Path) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """Architecture and megatron-core tensors of a Hugging Face model, the vocabulary not padded."""
    reader = ModelReader(directory)
    family = family_of(reader.config["model_type"])
    arch = family.read_config(reader.config)
    return arch, dict(to_megatron(family, arch, reader.read, arch.vocab_size))


@pytest.mark.core_ranks
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_loads_under_tensor_parallelism(
    name: str, models: dict[str, Path], converted: dict[str, Path]
) -> None:
    """Converted in one process and read by two: whole tensors are the model's, bit for bit."""
    runs = run_ranks(stored_weights, TP2.ranks, str(converted[name]), TP2)
    _, expected = described(models[name])
    found = assemble(runs, "weights")
    for key, tensor in expected.items():
        key = key.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        key = key.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        assert np.array_equal(found.pop(key)[: len(tensor)], tensor.numpy()), key
    assert not found


@pytest.mark.parametrize("name", NAMES)
def test_verified_and_exported_as_it_came(
    name: str, models: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    """`cptron verify` on the probe's tokens, and an export with the tensors of the model, bit for bit."""
    for arguments in (["verify", str(converted[name]), str(models[name])], ["export", str(converted[name])]):
        more = [str(tmp_path / "exported")] if arguments[0] == "export" else ["--tolerance", "1e-4"]
        (outcome,) = run_ranks(command, 1, [*arguments, *more])
        assert not outcome.error
    source, target = ModelReader(models[name]), ModelReader(tmp_path / "exported")
    assert source.names == target.names
    assert all(torch.equal(source.read(key), target.read(key)) for key in source.names)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("qwen2", TP2), ("olmo2", TP2), pytest.param("gemma3", Layout(), marks=pytest.mark.more)],
)
def test_dora_equals_peft(
    name: str, layout: Layout, models: dict[str, Path], converted: dict[str, Path], tmp_path: Path
) -> None:
    """Logits within 1e-4: a bias is not rescaled, and a norm behind a linear comes after its adapter."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    config = AdapterConfig(kind="dora", rank=4, alpha=6.0)
    (whole,) = run_ranks(adapter_calls.started_adapter, 1, str(converted[name]), Layout(), config)
    random = np.random.default_rng(0)
    for key in sorted(whole):
        if key.endswith("lora_B"):
            whole[key] = random.normal(0, 0.1, whole[key].shape).astype(np.float32)
        if key.endswith("magnitude"):
            whole[key] *= random.uniform(0.8, 1.2, whole[key].shape).astype(np.float32)
    tensors = {key: torch.from_numpy(array) for key, array in whole.items()}
    export_peft(tmp_path / "peft", tensors, described(models[name])[0], config, str(models[name]))
    base = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    tokens_BS = random.integers(0, VOCAB, (1, WIDTH))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens_BS)).logits.numpy()
    arguments = (str(converted[name]), layout, config, whole, tokens_BS)
    for logits in run_ranks(adapter_calls.logits, layout.ranks, *arguments):
        assert np.abs(logits - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_fp8_does_not_depend_on_the_cut(models: dict[str, Path]) -> None:
    """Losses and gradient norms of two ranks are those of one, but where rounding in fp32 pushes a value over the
    edge between two codes; and they are not those of fp32."""
    draw = np.random.default_rng(2)
    stream_GW1 = draw.integers(0, VOCAB, (4, WIDTH + 1))
    ones_GW = np.ones((4, WIDTH), np.float32)
    batch = Batch(
        stream_GW1[:, :-1].copy(), stream_GW1[:, 1:].copy(), ones_GW, np.zeros((4, WIDTH), np.int32)
    )
    fp8 = Fp8Config(recipe="rowwise", without_hardware="emulate")
    jobs: list[Any] = [(str(models[name]), ModelOptions(fp8=fp8)) for name in NAMES]
    plain: list[Any] = [(directory, ModelOptions()) for directory, _ in jobs]
    arguments = (batch.tokens_GW[0], [batch])
    (exact,) = run_ranks(logits_and_steps, 1, plain, *arguments, Layout())
    (single,) = run_ranks(logits_and_steps, 1, jobs, *arguments, Layout())
    double = run_ranks(logits_and_steps, 2, jobs, *arguments, TP2)[0]
    for name, no, one, two in zip(NAMES, exact, single, double, strict=True):
        (loss, norm), (loss2, norm2) = one.history[0], two.history[0]
        assert loss2 == pytest.approx(loss, rel=3e-3), name
        assert norm2 == pytest.approx(norm, rel=0.05), name
        assert abs(no.history[0][1] - norm) > 1e-4 * norm, "FP8 that equals fp32 was not FP8"


def test_the_cases_are_there() -> None:
    """By their names."""
    cases: dict[str, FamilyCase] = {case.id: case for case in CASES}
    assert set(NAMES) <= set(cases)
