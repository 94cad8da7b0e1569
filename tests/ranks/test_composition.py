"""Every way of cutting the work gives what one process computes with `transformers` and torch's AdamW.

`pytest tests/ranks -k composition --collect-only -q` lists the layouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from composition_calls import OPTIM, Batch, assemble, one_step

from cptron.config.schema import AttentionConfig, MemoryConfig
from cptron.convert.weight_map import to_megatron
from cptron.model.families.llama import LLAMA, read_config
from cptron.model.options import ModelOptions
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

ROWS, WIDTH, VOCAB = 12, 32, 300
RTOL = 1e-5
SOME_LOGITS = MemoryConfig(logits_chunk_tokens=7)


class Case(NamedTuple):
    """A layout, and what else is on."""

    layout: Layout
    world_size: int
    tied: bool = False
    documents: bool = True
    reset: bool = False
    recompute: str = "none"
    micro: int = 2
    overlap: bool = False

    @property
    def id(self) -> str:
        """What the test is called."""
        dp = self.world_size // self.layout.ranks
        words = [f"{self.layout.describe()}_dp{dp}", "tied" if self.tied else "untied"]
        words += ["documents"] if self.documents else []
        words += ["reset"] if self.reset else []
        words += [f"recompute-{self.recompute}"] if self.recompute != "none" else []
        words += ["overlap"] if self.overlap else []
        return "-".join(words)

    @property
    def options(self) -> ModelOptions:
        """Model options of the case."""
        return ModelOptions(
            attention=AttentionConfig(document_mask=self.documents, reset_positions=self.reset),
            memory=MemoryConfig(
                recompute=self.recompute,  # type: ignore[arg-type]
                recompute_modules=("core_attn", "mlp"),
                logits_chunk_tokens=7,  # no divisor of anything
            ),
        )


def case(world_size: int, tied: bool = False, **given: object) -> Case:
    """A case from the fields of `Layout` and of `Case`."""
    own = {key: given.pop(key) for key in list(given) if key in Case._fields}
    sp = bool(given.pop("sp", False))
    return Case(Layout(sequence_parallel=sp, **given), world_size, tied, **own)  # type: ignore[arg-type]


CASES = [
    # one axis
    case(1, documents=False),
    case(1, tied=True, reset=True, recompute="full"),
    case(1, recompute="selective"),
    case(2, tp=2),
    case(4, tp=4, tied=True),
    case(2, tp=2, sp=True),
    case(4, tp=4, sp=True, tied=True, recompute="full"),
    case(2, pp=2, tied=True),
    case(3, pp=3, recompute="full"),
    case(4, pp=4, first_stage_layers=1, last_stage_layers=1, tied=True),
    case(2, pp=2, first_stage_layers=2),
    case(2, pp=2, virtual_stages=3),
    case(3, pp=3, virtual_stages=2, tied=True),
    case(2, pp=2, virtual_stages=2, first_stage_layers=2, recompute="full"),
    case(2, cp=2, documents=False),
    case(2, cp=2, tied=True),
    case(4, cp=4, reset=True),
    case(2, cp=2, recompute="selective"),
    case(2),
    case(4, tied=True, recompute="full", micro=1),
    case(2, overlap=True),
    # pairs
    case(4, tp=2, pp=2, tied=True),
    case(4, tp=2, sp=True, pp=2),
    case(4, tp=2, sp=True, pp=2, virtual_stages=3, tied=True, recompute="full"),
    case(4, tp=2, pp=2, virtual_stages=3, documents=False),
    case(4, tp=2, cp=2),
    case(4, tp=2, sp=True, cp=2, tied=True, reset=True),
    case(4, tp=2, sp=True, cp=2, documents=False, recompute="selective"),
    case(4, tp=2),
    case(4, tp=2, sp=True, tied=True, recompute="full"),
    case(4, pp=2, cp=2),
    case(4, pp=2, cp=2, tied=True, recompute="full"),
    case(4, pp=2, cp=2, virtual_stages=3),
    case(4, pp=2, tied=True, micro=1),
    case(4, pp=2, virtual_stages=3, micro=1),
    case(4, pp=2, first_stage_layers=4, recompute="selective"),
    case(4, cp=2, reset=True),
    case(4, cp=2, tied=True, documents=False),
    case(4, cp=2, overlap=True),
    case(8, tp=4, pp=2, tied=True),
    case(8, tp=4, sp=True, cp=2),
    # triples
    case(8, tp=2, sp=True, pp=2, cp=2, tied=True, reset=True),
    case(8, tp=2, pp=2, cp=2, recompute="full"),
    case(8, tp=2, sp=True, pp=2, cp=2, virtual_stages=3),
    case(8, tp=2, sp=True, pp=2, tied=True, micro=1, recompute="selective"),
    case(8, tp=2, sp=True, pp=2, virtual_stages=3, micro=1),
    case(8, tp=2, sp=True, cp=2, tied=True),
    case(8, tp=2, cp=2, recompute="full", overlap=True),
    case(8, pp=2, cp=2, micro=1),
    case(8, pp=2, cp=2, virtual_stages=3, tied=True, micro=1),
]


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
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": OPTIM.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.eps)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_grad_norm)
    adamw.step()
    weights = megatron_tensors(model, directory, "data")
    return Reference(float(loss_sum.detach()) / count, float(norm), gradients, weights)


def row_loss(model: torch.nn.Module, batch: Batch, row: int, documents: bool, reset: bool) -> torch.Tensor:
    """Summed loss of one row: forward passes that see one document each."""
    ids_W = batch.documents_GW[row]
    cuts = [0, *(np.flatnonzero(np.diff(ids_W)) + 1).tolist(), WIDTH]
    begins_W = np.repeat(cuts[:-1], np.diff(cuts))
    positions_W = np.arange(WIDTH) - (begins_W if reset else 0)
    total = torch.zeros(())
    for start, stop in itertools.pairwise(cuts) if documents else [(0, WIDTH)]:
        part = slice(start, stop)
        logits = model(
            torch.from_numpy(batch.tokens_GW[row : row + 1, part]),
            position_ids=torch.from_numpy(positions_W[None, part]),
        ).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(batch.labels_GW[row, part]), reduction="none"
        )
        total = total + (loss * torch.from_numpy(batch.mask_GW[row, part])).sum()
    return total


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
    from conftest import convert

    root = tmp_path_factory.mktemp("composition")
    for tied in (False, True):
        run_ranks(convert, 1, str(references(tied, True, False)[0]), str(root / str(tied)))
    return {tied: root / str(tied) for tied in (False, True)}


@pytest.mark.core_ranks
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
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


def test_the_cases_are_many_and_different() -> None:
    """At least 40 layouts; every axis alone, with every other, and three at a time."""
    assert len({case.id for case in CASES}) == len(CASES) >= 40
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
