"""The inner optimizer: torch's AdamW to the last bit, with FusedAdam's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from cptron.optim.adamw import AdamW

SHAPES = [(7,), (16, 5), (1,), (3, 4, 2), (64, 33)]
RATES: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters(seed: int) -> list[torch.nn.Parameter]:
    """Matrices and vectors in fp32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(step: int, *sides: list[torch.nn.Parameter]) -> None:
    """The same gradients on every side, of very different sizes."""
    for params in zip(*sides, strict=True):
        generator = torch.Generator().manual_seed(1000 * step + params[0].numel())
        gradient = torch.randn(params[0].shape, generator=generator) * 10.0 ** (step % 7 - 4)
        for param in params:
            param.grad = gradient.clone()


def groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Matrices decayed, vectors not, as in training."""
    return [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.0), (False, 2e-6)])
def test_equals_torch_over_20_steps(fused: bool, tolerance: float) -> None:
    """Bit for bit torch's fused AdamW, and its plain loops to rounding; the rate changes at each step."""
    ours, theirs = parameters(0), parameters(0)
    mine = AdamW(groups(ours), **RATES, weight_decay=0.0)
    reference = torch.optim.AdamW(groups(theirs), **RATES, fused=fused, foreach=False)
    for step in range(20):
        set_gradients(step, ours, theirs)
        for group in (*mine.param_groups, *reference.param_groups):
            group["lr"] = 3e-3 * (step + 1) / 20
        mine.step()
        reference.step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)
        for moment in ("exp_avg", "exp_avg_sq"):
            found, expected = mine.state[our][moment], reference.state[their][moment]
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_one_step_by_hand() -> None:
    """Decay first, then the first step is lr * sign of the gradient, whatever its size."""
    param = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    param.grad = torch.tensor([1e-3, -50.0], dtype=torch.float64)
    AdamW([param], lr=0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.5).step()
    assert param.tolist() == pytest.approx([2.0 * 0.95 - 0.1, -1.0 * 0.95 + 0.1])


def test_state_is_that_of_fused_adam() -> None:
    """Two moments a parameter, and the step as an int in the group; parameters without gradient have none."""
    params = parameters(1)
    optimizer = AdamW(groups(params), **RATES, weight_decay=0.0)
    for step in range(3):
        set_gradients(step, params)
        params[2].grad = None
        before = params[2].clone()
        optimizer.step()
        assert torch.equal(params[2], before)
    for group in optimizer.param_groups:
        assert group["step"] == 3
        assert type(group["step"]) is int
    for param in params:
        names = set(optimizer.state[param]) if param in optimizer.state else set()
        assert names == ({"exp_avg", "exp_avg_sq"} if param is not params[2] else set())


def test_goes_on_from_its_state_dict() -> None:
    """Ten steps, saved and loaded elsewhere, then ten more: the same bits as twenty."""
    whole, first = parameters(2), parameters(2)
    uninterrupted = AdamW(groups(whole), **RATES, weight_decay=0.0)
    optimizer = AdamW(groups(first), **RATES, weight_decay=0.0)
    for step in range(10):
        set_gradients(step, whole, first)
        uninterrupted.step()
        optimizer.step()
    second = copy.deepcopy(first)
    continued = AdamW(groups(second), **RATES, weight_decay=0.0)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(10, 20):
        set_gradients(step, whole, second)
        uninterrupted.step()
        continued.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))
