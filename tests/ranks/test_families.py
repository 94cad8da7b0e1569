"""Every family computes, and learns, what `transformers` and torch's AdamW do, under a few layouts.

The families share a call of the ranks for each layout, since setting up groups of ranks is most of the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composition_calls import Batch, assemble
from family_calls import OPTIM, FamilyRun, logits_and_steps
from family_models import CASES, VOCAB, WIDTH, FamilyCase, make_model
from plain_reference import train

from cptron.config.schema import AttentionConfig, MemoryConfig
from cptron.convert.weight_map import to_hugging_face
from cptron.model.architecture import Architecture
from cptron.model.families import FAMILIES, family_of
from cptron.model.options import ModelOptions
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

ROWS, STEPS = 4, 3
RTOL = 1e-5

STAGED = ("llama", "qwen2", "gemma3", "phi3-reset")
"""Cases that are cut into stages by default, the others over context ranks; `more` has the rest of both."""
HEAD_NORMED = ("qwen3", "gemma3", "olmo2")
"""Norms that every tensor rank sees a part of, also where the sequence is whole on each."""
STORED = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


class Reference(NamedTuple):
    """A family's model, and what one process computes with it."""

    directory: Path
    arch: Architecture
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


def reference(case: FamilyCase, batches: list[Batch], directory: Path) -> Reference:
    """`transformers` and torch's AdamW; documents pass through the model one by one."""
    from transformers import AutoModelForCausalLM

    make_model(case, directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    arch = family_of(case.model_type).read_config(model.config.to_dict())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that share so little work mostly wait for each other
    with torch.no_grad():
        logits_WV = model(torch.from_numpy(batches[0].tokens_GW[:1])).logits[0].numpy()
    history = train(model, batches, OPTIM, documents=case.documents, reset=case.reset)
    torch.set_num_threads(threads)
    weights = {name: tensor.detach().numpy().copy() for name, tensor in model.named_parameters()}
    return Reference(directory, arch, logits_WV, history, weights)


def options_of(case: FamilyCase, **more: Any) -> ModelOptions:
    """Documents as the case has them."""
    attention = AttentionConfig(document_mask=case.documents, reset_positions=case.reset)
    return ModelOptions(attention=attention, **more)


def exported(runs: list[FamilyRun], arch: Architecture) -> dict[str, np.ndarray]:
    """Whole weights under the names and in the layout of Hugging Face."""
    whole = {}
    for name, values in assemble(runs, "weights").items():
        for stored, ours in STORED.items():
            name = name.replace(stored, ours)
        whole[name] = torch.from_numpy(values)
    tensors = to_hugging_face(family_of(arch.family), arch, whole.__getitem__)
    return {name: tensor.numpy() for name, tensor in tensors}


def differences(runs: list[FamilyRun], expected: Reference) -> dict[str, float]:
    """Largest relative difference of logits, of losses and gradient norms, and of each trained weight."""
    found_WV = np.full_like(expected.logits_WV, np.nan)
    history = np.array(expected.history)
    largest = np.abs(expected.logits_WV).max()
    assert largest > 0.5, "logits this small could not tell a wrong model"
    found = {"history": max(np.abs(np.array(run.history) / history - 1).max() for run in runs)}
    for run in runs:
        if run.logits is not None:
            found_WV[run.places] = run.logits
    found["logits"] = np.abs(found_WV - expected.logits_WV).max() / largest
    weights = exported(runs, expected.arch)
    assert weights.keys() == expected.weights.keys()
    for name, values in expected.weights.items():
        found[name] = np.abs(weights[name] - values).max() / np.abs(values).max()
    return found


NEWEST_TOO = pytest.mark.core_ranks
MORE = pytest.mark.more
ALL = tuple(case.id for case in CASES)
OTHERS = tuple(name for name in ALL if name not in STAGED)
LAYOUTS = [
    pytest.param(Layout(), ALL, id="tp1", marks=MORE),
    pytest.param(Layout(tp=2, sequence_parallel=True), ALL, id="tp2_sp"),
    pytest.param(Layout(cp=2), OTHERS, id="cp2"),
    pytest.param(Layout(pp=2), STAGED, id="pp2"),
    pytest.param(Layout(tp=2), HEAD_NORMED, id="tp2", marks=NEWEST_TOO),
    pytest.param(
        Layout(tp=2), tuple(name for name in ALL if name not in HEAD_NORMED), id="tp2-rest", marks=MORE
    ),
    pytest.param(Layout(cp=2), STAGED, id="cp2-rest", marks=MORE),
    pytest.param(Layout(pp=2), OTHERS, id="pp2-rest", marks=MORE),
    pytest.param(Layout(tp=2, sequence_parallel=True, cp=2), ALL, id="tp2_sp_cp2", marks=MORE),
]


@pytest.mark.parametrize(("layout", "names"), LAYOUTS)
def test_families_equal_transformers(
    layout: Layout,
    names: tuple[str, ...],
    batches: list[Batch],
    references: Callable[[FamilyCase], Reference],
) -> None:
    """Logits before, losses and gradient norms of three steps, and all weights after them, to 1e-5 of the largest."""
    cases = [case for case in CASES if case.id in names]
    expected = [references(case) for case in cases]
    jobs = [(str(known.directory), options_of(case)) for case, known in zip(cases, expected, strict=True)]
    runs = run_ranks(logits_and_steps, layout.ranks, jobs, batches[0].tokens_GW[0], batches, layout)
    wrong = {}
    for number, (case, known) in enumerate(zip(cases, expected, strict=True)):
        found = differences([rank[number] for rank in runs], known)
        wrong |= {f"{case.id}: {name}": value for name, value in found.items() if not value <= RTOL}
    assert not wrong


RECOMPUTED = ("qwen2", "gemma3", "olmo2")


def test_recomputed_layers_learn_the_same(
    batches: list[Batch], references: Callable[[FamilyCase], Reference]
) -> None:
    """Windows, biases and norms behind linears, with whole layers recomputed and with parts of them."""
    cases = [case for case in CASES if case.id in RECOMPUTED]
    expected = [references(case) for case in cases]
    for memory in (MemoryConfig(recompute="full"), MemoryConfig(recompute="selective")):
        memory = replace(memory, recompute_modules=("core_attn", "mlp"))
        jobs = [
            (str(known.directory), options_of(case, memory=memory))
            for case, known in zip(cases, expected, strict=True)
        ]
        (runs,) = run_ranks(logits_and_steps, 1, jobs, batches[0].tokens_GW[0], batches, Layout())
        for run, known in zip(runs, expected, strict=True):
            assert max(differences([run], known).values()) <= RTOL


def test_every_family_is_among_the_cases() -> None:
    """Or nothing above would hold for it."""
    assert {case.model_type for case in CASES} == set(FAMILIES)
