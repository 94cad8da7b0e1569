"""Every way of cutting the work gives what one process computes with `transformers` and torch's AdamW.

`pytest tests/ranks -k composition --collect-only -q` lists the layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composition_calls import OPTIM, Batch, assemble, one_step
from composition_cases import CASES, Case
from plain_reference import adamw_of, row_loss

from cptron.config.schema import AdapterConfig, Fp8Config
from cptron.convert.weight_map import to_megatron
from cptron.model.families.llama import LLAMA, read_config
from cptron.model.options import ModelOptions
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

ROWS, WIDTH, VOCAB = 12, 32, 300
NEWEST_TOO = pytest.mark.core_ranks
MORE = pytest.mark.more
QUICK = {
    "tp1_pp1_dp1-untied": NEWEST_TOO,
    "tp1_pp3_vp2_dp1-tied-documents": NEWEST_TOO,
    "tp1_cp4_pp1_dp1-untied-documents-reset": (),
    "tp1_pp1_dp2-untied-documents": (),
    "tp1_pp1_dp2-untied-documents-overlap": (),
    "tp2_pp2_vp3_dp1-untied": NEWEST_TOO,
    "tp2_sp_cp2_pp1_dp1-tied-documents-reset": NEWEST_TOO,
    "tp4_sp_cp2_pp1_dp1-untied-documents": (),
    "tp2_sp_pp2_dp2-tied-documents-recompute-selective": (),
}
"""Proven by `make test`, and some of them under the newest megatron-core too; `make test-more` has the others."""
RTOL = 1e-5


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows of several documents, of one, and with targets that do not count."""
    draw = np.random.default_rng(5)
    stream_GW1 = draw.integers(0, VOCAB, (ROWS, WIDTH + 1))
    mask_GW = (draw.random((ROWS, WIDTH)) < 0.9).astype(np.float32)
    documents_GW = np.zeros((ROWS, WIDTH), np.int32)
    for row in range(1, ROWS):
        cuts = draw.choice(np.arange(1, WIDTH), size=row % 5, replace=False)
        documents_GW[row] = (np.arange(WIDTH)[:, None] >= cuts).sum(1)
    return Batch(stream_GW1[:, :-1].copy(), stream_GW1[:, 1:].copy(), mask_GW, documents_GW)


class Reference(NamedTuple):
    """What one process computes."""

    loss: float
    grad_norm: float
    gradients: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def references(
    make_llama: Callable[..., Path], batch: Batch
) -> Callable[[bool, bool, bool], tuple[Path, Reference]]:
    """Function of (tied, documents, reset) that gives the Hugging Face directory and the reference step."""
    known: dict[tuple[bool, bool, bool], Reference] = {}
    models = {tied: make_llama(num_hidden_layers=6, tie_word_embeddings=tied) for tied in (False, True)}

    def get(tied: bool, documents: bool, reset: bool) -> tuple[Path, Reference]:
        key = (tied, documents, reset)
        if key not in known:
            known[key] = reference_step(models[tied], batch, documents, reset)
        return models[tied], known[key]

    return get


def reference_step(directory: Path, batch: Batch, documents: bool, reset: bool) -> Reference:
    """Each document on its own through `transformers`; one AdamW step of torch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    loss_sum = torch.zeros(())
    for row in range(ROWS):
        loss_sum = loss_sum + row_loss(model, batch, row, documents, reset)
    count = float(batch.mask_GW.sum())
    (loss_sum / count).backward()
    gradients = megatron_tensors(model, directory, "grad")
    adamw = adamw_of(model, OPTIM)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad_norm)
    adamw.step()
    weights = megatron_tensors(model, directory, "data")
    return Reference(float(loss_sum.detach()) / count, float(norm), gradients, weights)


def megatron_tensors(model: torch.nn.Module, directory: Path, what: str) -> dict[str, np.ndarray]:
    """Weights or gradients under the names and in the layout of checkpoints."""
    import json

    arch = read_config(json.loads((directory / "config.json").read_text()))
    tensors = {name: getattr(param, what).detach() for name, param in model.named_parameters()}
    names = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    found = {}
    for name, tensor in to_megatron(LLAMA, arch, tensors.__getitem__, arch.vocab_size):
        for ours, stored in names.items():
            name = name.replace(ours, stored)
        found[name] = tensor.numpy().copy()
    return found


@pytest.fixture(scope="module")
def converted(
    references: Callable[..., tuple[Path, Reference]], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """Checkpoints by tied or not."""
    from conversion_calls import convert

    root = tmp_path_factory.mktemp("composition")
    for tied in (False, True):
        run_ranks(convert, 1, str(references(tied, True, False)[0]), str(root / str(tied)))
    return {tied: root / str(tied) for tied in (False, True)}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id, marks=QUICK.get(case.id, MORE)) for case in CASES],
)
def test_composition(
    case: Case,
    batch: Batch,
    references: Callable[[bool, bool, bool], tuple[Path, Reference]],
    converted: dict[bool, Path],
) -> None:
    """Loss, gradient norm, every gradient and every weight after the step, within 1e-5 of the largest value."""
    _, expected = references(case.tied, case.documents, case.reset)
    arguments = (str(converted[case.tied]), batch, case.layout, case.options, case.micro, case.overlap)
    steps = run_ranks(one_step, case.world_size, *arguments)
    for step in steps:
        assert step.loss == pytest.approx(expected.loss, rel=RTOL)
        assert step.grad_norm == pytest.approx(expected.grad_norm, rel=RTOL)
        assert step.tokens == int(batch.mask_GW.sum())
    for what in ("gradients", "weights"):
        found, wanted = assemble(steps, what), getattr(expected, what)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            part = found[name][: len(values)] if found[name].ndim == 2 else found[name]  # vocabulary padding
            assert np.abs(part - values).max() <= RTOL * np.abs(values).max(), f"{what} of {name}"


FP8_LAYOUTS = [
    pytest.param(Layout(tp=2), marks=MORE),
    Layout(tp=2, sequence_parallel=True, pp=2),
    pytest.param(Layout(pp=2, virtual_stages=3), marks=MORE),
    pytest.param(Layout(tp=2, sequence_parallel=True, cp=2), marks=MORE),
]


@pytest.mark.parametrize("recipe", ["tensorwise", pytest.param("rowwise", marks=pytest.mark.more)])
@pytest.mark.parametrize("layout", FP8_LAYOUTS, ids=Layout.describe)
def test_fp8_composition(layout: Layout, recipe: Any, batch: Batch, converted: dict[bool, Path]) -> None:
    """FP8 under a layout computes what FP8 computes in one process: the same scales, so the same codes, but where
    rounding in fp32 pushes a value over the edge between two codes; what follows from that is well within FP8's own
    distance from fp32. Context ranks quantise their own tokens, as data ranks do, so there the scales differ too."""
    options = ModelOptions(
        fp8=Fp8Config(recipe=recipe, without_hardware="emulate", bf16_first_layers=1, bf16_last_layers=1)
    )
    arguments = (str(converted[False]), batch)
    single = run_ranks(one_step, 1, *arguments, Layout(), options, 2)
    steps = run_ranks(one_step, layout.ranks, *arguments, layout, options, 2)
    plain = run_ranks(one_step, 1, *arguments, Layout(), ModelOptions(), 2)
    assert steps[0].loss == pytest.approx(single[0].loss, rel=3e-3)
    exact, wanted, found = (assemble(run, "gradients") for run in (plain, single, steps))
    own = distance(wanted, exact)
    assert own > 0.01, "FP8 that equals fp32 was not FP8"
    assert distance(found, wanted) <= (1.0 if layout.cp > 1 else 0.5) * own


ADAPTER_LAYOUTS = [
    pytest.param(2, Layout(), marks=MORE),
    (2, Layout(cp=2)),
    (2, Layout(pp=2, virtual_stages=3)),
    pytest.param(4, Layout(tp=2, sequence_parallel=True, cp=2), marks=MORE),
]


@pytest.mark.parametrize("fp8", ["none", pytest.param("rowwise", marks=pytest.mark.more)])
@pytest.mark.parametrize(("world_size", "layout"), ADAPTER_LAYOUTS, ids=str)
def test_adapter_composition(
    world_size: int, layout: Layout, fp8: Any, batch: Batch, converted: dict[bool, Path]
) -> None:
    """DoRA, on a base in fp32 and in FP8, under data, context and interleaved pipeline parallelism: what one process
    computes. (`test_adapters` proves that one process computes what PEFT does.)"""
    options = ModelOptions(
        adapter=AdapterConfig(kind="dora", rank=4), fp8=Fp8Config(recipe=fp8, without_hardware="emulate")
    )
    single, steps = (
        run_ranks(one_step, ranks, str(converted[False]), batch, cut, options, 2)
        for ranks, cut in ((1, Layout()), (world_size, layout))
    )
    exact = fp8 == "none"
    assert steps[0].loss == pytest.approx(single[0].loss, rel=RTOL if exact else 3e-3)
    wanted, found = (assemble(run, "gradients") for run in (single, steps))
    assert wanted.keys() == found.keys() and all(".adapter." in name for name in wanted)
    assert distance(found, wanted) <= (1e-5 if exact else 0.2)


def distance(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """Of all gradients together, relative."""
    squares = sum(float(np.square(found[name] - wanted[name], dtype=np.float64).sum()) for name in wanted)
    return float(
        np.sqrt(squares / sum(float(np.square(wanted[name], dtype=np.float64).sum()) for name in wanted))
    )


def test_the_cases_are_many_and_different() -> None:
    """At least 40 layouts; every axis alone, with every other, and three at a time."""
    assert len({case.id for case in CASES}) == len(CASES) >= 40
    assert QUICK.keys() <= {case.id for case in CASES}
    axes = [
        frozenset(
            name
            for name, on in {
                "tp": case.layout.tp > 1,
                "sp": case.layout.sequence_parallel,
                "pp": case.layout.pp > 1,
                "vpp": case.layout.virtual_stages > 1,
                "cp": case.layout.cp > 1,
                "dp": case.world_size > case.layout.ranks,
            }.items()
            if on
        )
        for case in CASES
    ]
    for first in ("tp", "sp", "pp", "vpp", "cp", "dp"):
        for second in ("tp", "sp", "pp", "vpp", "cp", "dp"):
            assert any({first, second} <= on for on in axes), (first, second)
