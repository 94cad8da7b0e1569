"""Muon, where its package is installed, against the update written out; elsewhere these tests are skipped."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optim_calls
import pytest
import torch
from optim_calls import Case, Outcome

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import OptimConfig
from cptron.model.build import build_model
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

pytestmark = pytest.mark.skipif(
    find_spec("emerging_optimizers") is None, reason="NVIDIA's emerging_optimizers is not installed"
)
MUON = OptimConfig(name="muon", lr=2e-3, momentum=0.9, weight_decay=0.1, clip_grad_norm=1.0)
TP2, PP2 = Layout(tp=2, sequence_parallel=True), Layout(pp=2)
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Of the quintic's five steps, https://leloykun.github.io/ponder/muon-opt-coeffs."""
LAYOUTS = [(1, Layout()), (2, Layout()), (2, TP2), (2, PP2), (4, replace(TP2, pp=2))]


def train(world_size: int, checkpoint: Path, tokens_NGS1: np.ndarray, case: Case) -> list[Outcome]:
    """All ranks' outcomes."""
    return run_ranks(optim_calls.train, world_size, str(checkpoint), tokens_NGS1, case)


def orthogonalized(matrix_RC: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz, scaled as Liu et al. 2025 (arXiv:2502.16982) do."""
    x = matrix_RC / matrix_RC.norm()
    wide = x if x.size(0) <= x.size(1) else x.t()
    for a, b, c in COEFFICIENTS:
        gram = wide @ wide.t()
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.size(0) <= x.size(1) else wide.t()) * max(matrix_RC.shape) ** 0.5


def update(name: str, momentum_RC: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Each matrix on its own; queries, keys and values, which are stored by group, are three."""
    if "linear_qkv" not in name:
        return orthogonalized(momentum_RC)
    grouped = momentum_RC.view(-1, sum(sizes), momentum_RC.size(1)).split(sizes, dim=1)
    parts = [orthogonalized(part.flatten(0, 1)).view(part.shape) for part in grouped]
    return torch.cat(parts, dim=1).view(momentum_RC.shape)


def plain_muon(checkpoint: str, tokens_NGS1: np.ndarray, optim: OptimConfig) -> list[float]:
    """Loss of each step on one rank, without wrapper and schedule: Muon written out, and torch's AdamW."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    sizes = [arch.num_attention_heads // arch.num_kv_heads * arch.head_dim, arch.head_dim, arch.head_dim]
    with open_session(ranks, Layout(), threads_per_rank=1):
        model = build_model(arch)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, [model])
        params = dict(model.named_parameters())
        matrices = {n: p for n, p in params.items() if n.startswith("decoder.layers") and p.dim() == 2}
        groups: list[Any] = [
            {"params": [p], "weight_decay": optim.weight_decay if p.dim() > 1 else 0.0}
            for name, p in params.items()
            if name not in matrices
        ]
        adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
        momenta = {name: torch.zeros_like(param) for name, param in matrices.items()}
        losses: list[float] = []
        for tokens_GS1 in tokens_NGS1:
            model.zero_grad()
            loss = optim_calls._mean_loss(model, tokens_GS1)
            loss.backward()
            losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_(params.values(), optim.clip_grad_norm)
            adamw.step()
            with torch.no_grad():
                for name, param in matrices.items():
                    assert param.grad is not None
                    momenta[name].mul_(optim.momentum).add_(param.grad, alpha=1 - optim.momentum)
                    param.mul_(1 - optim.lr * optim.weight_decay)
                    param.sub_(update(name, momenta[name], sizes), alpha=optim.lr)
        return losses


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_every_cut_takes_the_written_steps(
    name: str, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """Six steps: losses within 2e-4, since the package multiplies matrices in less than fp32 where it can; AdamW's are
    others."""
    base, tokens = checkpoints[name], tokens_NGS1[:6]
    (expected,) = run_ranks(plain_muon, 1, str(base), tokens, MUON)
    for world_size, layout in LAYOUTS:
        for outcome in train(world_size, base, tokens, Case(optim=MUON, layout=layout)):
            assert not outcome.error
            np.testing.assert_allclose(outcome.losses, expected, rtol=2e-4, err_msg=str(layout))
    adamw = train(1, base, tokens, Case(optim=replace(MUON, name="adamw")))[0]
    assert not np.allclose(adamw.losses[2:], expected[2:], rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumes_under_any_layout(
    precision: str, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray, tmp_path: Path
) -> None:
    """Saved by two data parallel ranks: to the bit in the same layout, to rounding in others."""
    base, shards = checkpoints["tied"], tmp_path / "shards"
    shards.mkdir()
    whole = train(2, base, tokens_NGS1[:6], Case(optim=MUON, precision=precision))[0]
    train(2, base, tokens_NGS1[:3], Case(optim=MUON, precision=precision, save=str(shards)))
    for world_size, layout in [(2, Layout()), (1, Layout()), (2, TP2), (2, PP2)]:
        case = Case(optim=MUON, precision=precision, layout=layout, resume=str(shards))
        continued = train(world_size, base, tokens_NGS1[3:6], case)[0]
        assert not continued.error
        if (world_size, layout) == (2, Layout()):
            assert continued.losses == whole.losses[3:]
        np.testing.assert_allclose(
            continued.losses, whole.losses[3:], rtol=0.02 if precision == "bf16" else 1e-3
        )
