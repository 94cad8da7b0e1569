"""Every family computes, and learns, what `transformers` and torch's AdamW do, under a few layouts.

`pytest tests/ranks -k families --collect-only -q` lists the cases.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composition_calls import OPTIM, Batch, assemble
from conftest import convert
from family_calls import FamilyRun, logits_and_steps
from family_models import CASES, VOCAB, WIDTH, FamilyCase, make_model
from plain_reference import train

from cptron.checkpoint.layout import read_manifest
from cptron.config.schema import AttentionConfig, MemoryConfig
from cptron.convert.weight_map import to_hugging_face
from cptron.model.families import family_of
from cptron.model.options import ModelOptions
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

ROWS, STEPS = 4, 3
RTOL = 1e-5

LAYOUTS = [Layout(), Layout(tp=2, sequence_parallel=True), Layout(cp=2), Layout(pp=2), Layout(tp=2)]
PIPELINE = {"llama", "qwen2", "gemma3", "phi3-reset"}
"""Cases whose third layout is pp 2; that of the others is cp 2."""
STORED = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


class Reference(NamedTuple):
    """A family's model, converted, and what one process computes with it."""

    checkpoint: Path
    logits_WV: np.ndarray
    history: list[tuple[float, float]]
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Rows of one to four documents, with targets that do not count."""
    draw = np.random.default_rng(11)
    found = []
    for _ in range(STEPS):
        stream_GW1 = draw.integers(0, VOCAB, (ROWS, WIDTH + 1))
        documents_GW = np.zeros((ROWS, WIDTH), np.int32)
        for row in range(1, ROWS):
            cuts = draw.choice(np.arange(1, WIDTH), size=row, replace=False)
            documents_GW[row] = (np.arange(WIDTH)[:, None] >= cuts).sum(1)
        mask_GW = (draw.random((ROWS, WIDTH)) < 0.9).astype(np.float32)
        found.append(Batch(stream_GW1[:, :-1].copy(), stream_GW1[:, 1:].copy(), mask_GW, documents_GW))
    return found


@pytest.fixture(scope="module")
def references(
    batches: list[Batch], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[FamilyCase], Reference]:
    """Function of a case; each is computed once."""
    known: dict[str, Reference] = {}

    def get(case: FamilyCase) -> Reference:
        if case.id not in known:
            known[case.id] = reference(case, batches, tmp_path_factory.mktemp(case.id))
        return known[case.id]

    return get


def reference(case: FamilyCase, batches: list[Batch], root: Path) -> Reference:
    """`transformers` and torch's AdamW; documents pass through the model one by one."""
    from transformers import AutoModelForCausalLM

    make_model(case, root / "model")
    run_ranks(convert, 1, str(root / "model"), str(root / "checkpoint"))
    model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32)
    with torch.no_grad():
        logits_WV = model(torch.from_numpy(batches[0].tokens_GW[:1])).logits[0].numpy()
    history = train(model, batches, OPTIM, documents=case.documents, reset=case.reset)
    weights = {name: tensor.detach().numpy().copy() for name, tensor in model.named_parameters()}
    return Reference(root / "checkpoint", logits_WV, history, weights)


def options_of(case: FamilyCase, **more: Any) -> ModelOptions:
    """Documents as the case has them."""
    attention = AttentionConfig(document_mask=case.documents, reset_positions=case.reset)
    return ModelOptions(attention=attention, **more)


def exported(runs: list[FamilyRun], checkpoint: Path) -> dict[str, np.ndarray]:
    """Whole weights under the names and in the layout of Hugging Face."""
    arch = read_manifest(checkpoint).arch
    whole = {}
    for name, values in assemble(runs, "weights").items():  # type: ignore[arg-type]
        for stored, ours in STORED.items():
            name = name.replace(stored, ours)
        whole[name] = torch.from_numpy(values)
    tensors = to_hugging_face(family_of(arch.family), arch, whole.__getitem__)
    return {name: tensor.numpy() for name, tensor in tensors}


def assert_equal(runs: list[FamilyRun], expected: Reference) -> None:
    """Logits, losses, gradient norms and trained weights."""
    found_WV = np.full_like(expected.logits_WV, np.nan)
    for run in runs:
        if run.logits is not None:
            found_WV[run.places] = run.logits
        np.testing.assert_allclose(np.array(run.history), np.array(expected.history), rtol=RTOL)
    largest = np.abs(expected.logits_WV).max()
    assert largest > 0.5, "logits this small could not tell a wrong model"
    assert np.abs(found_WV - expected.logits_WV).max() <= RTOL * largest
    weights = exported(runs, expected.checkpoint)
    assert weights.keys() == expected.weights.keys()
    for name, values in expected.weights.items():
        assert np.abs(weights[name] - values).max() <= RTOL * np.abs(values).max(), name


def cases() -> list[Any]:
    """Each case in one process, in two tensor ranks, and over two stages or context ranks; the others behind `more`."""
    found = []
    for case in CASES:
        third = LAYOUTS[3] if case.id in PIPELINE else LAYOUTS[2]
        for layout in LAYOUTS:
            marks = [] if layout in (LAYOUTS[0], LAYOUTS[1], third) else [pytest.mark.more]
            if case.core and layout == LAYOUTS[1]:
                marks.append(pytest.mark.core_ranks)
            found.append(pytest.param(case, layout, id=f"{case.id}-{layout.describe()}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "layout"), cases())
def test_families_equal_transformers(
    case: FamilyCase,
    layout: Layout,
    batches: list[Batch],
    references: Callable[[FamilyCase], Reference],
) -> None:
    """Logits before, and all weights after three steps, to 1e-5 of the largest."""
    expected = references(case)
    arguments = (str(expected.checkpoint), batches[0].tokens_GW[0], batches, layout, options_of(case))
    assert_equal(run_ranks(logits_and_steps, layout.ranks, *arguments), expected)
