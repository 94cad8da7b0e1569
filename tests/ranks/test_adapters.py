"""Adapters compute, train, reshard and export as Hugging Face PEFT's on one process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import adapter_calls
import numpy as np
import pytest
import torch

from cptron.config.schema import AdapterConfig
from cptron.convert.merged_source import MergedSource
from cptron.convert.peft_export import Adapters, export_peft, peft_tensors
from cptron.convert.safetensors_io import ModelReader
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

peft = pytest.importorskip("peft")

Arrays = dict[str, np.ndarray]

KINDS: list[Literal["lora", "dora"]] = ["lora", "dora"]
SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
"""Targets that leave gaps in both joined layers."""
LAYOUTS = [Layout(), Layout(tp=2), Layout(tp=2, sequence_parallel=True), Layout(pp=2)]
TRAINED = {
    ("dora", "tied", LAYOUTS[2]): pytest.mark.core_ranks,
    ("lora", "untied", LAYOUTS[3]): (),
}
"""Compared with PEFT by `make test`, with their marks; the others by `make test-more`."""
PASSED = (("lora", LAYOUTS[1]), ("dora", LAYOUTS[2]))
"""The same of a forward pass."""


def settings(kind: Any, targets: tuple[str, ...] = AdapterConfig().targets) -> AdapterConfig:
    """Small, with a scale that is no power of two."""
    return AdapterConfig(kind=kind, rank=4, alpha=6.0, targets=targets)


def architecture(directory: Path) -> Architecture:
    """Of a Hugging Face model."""
    return family_of("llama").read_config(json.loads((directory / "config.json").read_text()))


@pytest.fixture(scope="module")
def adapter_of(checkpoints: dict[str, Path]) -> Callable[..., Arrays]:
    """Function that makes an adapter far from the start: B random, magnitudes other than the norms."""

    def make(config: AdapterConfig, name: str = "untied") -> Arrays:
        (whole,) = run_ranks(adapter_calls.started_adapter, 1, str(checkpoints[name]), Layout(), config)
        random = np.random.default_rng(0)
        for name in sorted(whole):
            shape = whole[name].shape
            if name.endswith("lora_B"):
                whole[name] = random.normal(0, 0.1, shape).astype(np.float32)
            if name.endswith("magnitude"):
                whole[name] *= random.uniform(0.8, 1.2, shape).astype(np.float32)
        return whole

    return make


def tensors(whole: Arrays) -> Adapters:
    """As torch tensors."""
    return {name: torch.from_numpy(array) for name, array in whole.items()}


def peft_model(base: Path, whole: Arrays, config: AdapterConfig, directory: Path) -> Any:
    """PEFT on the transformers model, from an exported directory."""
    from transformers import AutoModelForCausalLM

    export_peft(directory, tensors(whole), architecture(base), config, str(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, directory, is_trainable=True)


def merged_stages(stages: list[Arrays]) -> Arrays:
    """Tensors of all ranks, which must agree where several hold one."""
    found: Arrays = {}
    for stage in stages:
        for name, array in stage.items():
            np.testing.assert_allclose(array, found.setdefault(name, array), rtol=1e-5, atol=1e-8)
    return found


@pytest.mark.parametrize(
    "targets",
    [pytest.param(AdapterConfig().targets, id="all"), pytest.param(SOME, id="some", marks=pytest.mark.more)],
)
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        pytest.param(kind, layout, marks=() if (kind, layout) in PASSED else pytest.mark.more)
        for kind, layout in itertools.product(KINDS, LAYOUTS[:3])
    ],
    ids=lambda value: value.describe() if isinstance(value, Layout) else value,
)
def test_logits_equal_peft_and_merged(
    kind: str,
    targets: tuple[str, ...],
    layout: Layout,
    checkpoints: dict[str, Path],
    untied: Path,
    adapter_of: Callable[..., Arrays],
    tmp_path: Path,
) -> None:
    """The engine's logits, PEFT's with the exported adapter and those of merged weights are within 1e-4."""
    config = settings(kind, targets)
    whole = adapter_of(config)
    tokens_BS = np.random.default_rng(1).integers(0, 300, (2, 32))
    model = peft_model(untied, whole, config, tmp_path / "peft").eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens_BS)).logits.numpy()
        with model.disable_adapter():
            base = model(torch.from_numpy(tokens_BS)).logits.numpy()
    assert np.abs(expected - base).max() > 0.1, "an adapter that changes nothing proves nothing"
    found = run_ranks(
        adapter_calls.logits, layout.tp, str(checkpoints["untied"]), layout, config, whole, tokens_BS
    )
    for logits in found:
        assert np.abs(logits - expected).max() <= 1e-4
    merged_logits = logits_of_merged(untied, whole, config, tokens_BS)
    assert np.abs(merged_logits - expected).max() <= 1e-4


def logits_of_merged(base: Path, whole: Arrays, config: AdapterConfig, tokens_BS: np.ndarray) -> np.ndarray:
    """Of the transformers model whose weights are merged here."""
    from transformers import AutoModelForCausalLM

    arch = architecture(base)
    reader = ModelReader(base)
    source = MergedSource(reader, arch, tensors(whole), config)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    model.load_state_dict({name: source.read(name) for name in reader.names}, strict=True)
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens_BS)).logits.numpy())


def peft_training(model: Any, tokens_NBS1: np.ndarray) -> tuple[list[float], list[float], dict[str, Any]]:
    """(losses, gradient norms, gradients of the first step by PEFT name) with torch's AdamW and clipping."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optim = adapter_calls.OPTIM
    groups = [
        {"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": optim["weight_decay"]},
        {"params": [p for p in trained.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=optim["lr"], betas=(0.9, 0.95), eps=1e-8)
    losses, norms, first = [], [], {}
    for tokens_BS1 in tokens_NBS1:
        adamw.zero_grad()
        tokens = torch.from_numpy(tokens_BS1)
        loss = torch.nn.functional.cross_entropy(
            model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        first = first or {
            name.replace(".default", "").removesuffix(".weight"): p.grad.numpy().copy()
            for name, p in trained.items()
        }
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), optim["clip_grad"])))
        adamw.step()
        losses.append(loss.item())
    return losses, norms, first


@pytest.mark.parametrize(
    ("kind", "name", "layout"),
    [
        pytest.param(*case, marks=TRAINED.get(case, pytest.mark.more))
        for case in itertools.product(("lora", "dora"), ("untied", "tied"), LAYOUTS)
        if case[:2] in (("lora", "untied"), ("dora", "tied"))
    ],
    ids=lambda value: value.describe() if isinstance(value, Layout) else value,
)
def test_training_equals_peft(
    kind: str,
    name: str,
    layout: Layout,
    checkpoints: dict[str, Path],
    tokens_NGS1: np.ndarray,
    adapter_of: Callable[..., Arrays],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Losses and norms of ten steps within 1e-5, and the gradient of every adapter tensor, are PEFT's."""
    base = request.getfixturevalue(name)
    config, arch = settings(kind), architecture(base)
    whole, steps = adapter_of(config, name), tokens_NGS1[:1].repeat(10, axis=0)
    model = peft_model(base, whole, config, tmp_path / "peft")
    losses, norms, gradients = peft_training(model, steps)
    results = run_ranks(
        adapter_calls.train, layout.ranks, str(checkpoints[name]), layout, config, whole, steps
    )
    for found_losses, found_norms, _, _ in results:
        if found_losses:
            np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
        np.testing.assert_allclose(found_norms, norms, rtol=1e-4)
    assert results[-1][0], "the last stage reports losses"
    found = merged_stages([result[2] for result in results])
    by_peft_name = dict(peft_tensors(tensors(found), arch, config))
    assert len(by_peft_name) == len(gradients)
    for key, gradient in by_peft_name.items():
        expected = gradients[key.removesuffix(".weight")]
        np.testing.assert_allclose(
            gradient.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=key
        )
    assert losses[-1] < losses[0], "ten steps that teach nothing would prove nothing"


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.more), "dora"])
def test_recompute_changes_nothing(
    kind: str,
    checkpoints: dict[str, Path],
    tokens_NGS1: np.ndarray,
    adapter_of: Callable[..., Arrays],
) -> None:
    """Frozen embeddings and full recomputation together still give every gradient, to the bit."""
    config = settings(kind)
    whole, layout = adapter_of(config), Layout(tp=2, sequence_parallel=True)
    args = (str(checkpoints["untied"]), layout, config, whole, tokens_NGS1[:2])
    plain, recomputed = (
        run_ranks(adapter_calls.train, 2, *args, recompute)[0] for recompute in ("none", "full")
    )
    assert plain[:2] == recomputed[:2]
    for name, array in plain[3].items():
        np.testing.assert_array_equal(array, recomputed[3][name])


@pytest.mark.parametrize(
    "layout", [pytest.param(LAYOUTS[1], marks=pytest.mark.more), *LAYOUTS[2:]], ids=Layout.describe
)
def test_start_does_not_depend_on_the_layout(layout: Layout, checkpoints: dict[str, Path]) -> None:
    """Every layout starts from one adapter, which differs between layers and changes nothing."""
    config, base = settings("dora"), str(checkpoints["tied"])
    (alone,) = run_ranks(adapter_calls.started_adapter, 1, base, Layout(), config)
    found = merged_stages(run_ranks(adapter_calls.started_adapter, layout.ranks, base, layout, config))
    assert found.keys() == alone.keys()
    for name, array in found.items():
        if name.endswith("magnitude"):
            np.testing.assert_allclose(array, alone[name], rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(array, alone[name], err_msg=name)
    down = "decoder.layers.{}.mlp.linear_fc2.adapter.down_proj.lora_A"
    assert (alone[down.format(0)] != alone[down.format(1)]).any()
    assert np.abs(alone[down.format(0)]).max() <= 128**-0.5


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(Layout(), marks=pytest.mark.more),
        Layout(tp=2),
        pytest.param(Layout(pp=2), marks=pytest.mark.more),
    ],
    ids=Layout.describe,
)
def test_adapter_loads_under_any_layout(
    source: Layout,
    checkpoints: dict[str, Path],
    adapter_of: Callable[..., Arrays],
    tmp_path: Path,
) -> None:
    """What one layout saved, the others load, to the bit."""
    config, base = settings("dora"), str(checkpoints["untied"])
    whole = adapter_of(config)
    run_ranks(adapter_calls.saved_and_loaded, source.ranks, base, source, config, str(tmp_path), whole)
    for layout in (Layout(), Layout(tp=2), Layout(pp=2), Layout(tp=2, pp=2)):
        found = merged_stages(
            run_ranks(adapter_calls.saved_and_loaded, layout.ranks, base, layout, config, str(tmp_path), None)
        )
        assert found.keys() == whole.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, whole[name], err_msg=name)
