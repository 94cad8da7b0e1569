"""SGD: torch's to the last bit, with state that megatron-core can store."""

from __future__ import annotations

import copy

import pytest
import torch

from cptron.optim.sgd import SGD

SHAPES = [(7,), (16, 5), (1,), (64, 33)]


def parameters() -> list[torch.nn.Parameter]:
    """Matrices and vectors."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(step: int, *sides: list[torch.nn.Parameter]) -> None:
    """The same on every side."""
    for params in zip(*sides, strict=True):
        generator = torch.Generator().manual_seed(1000 * step + params[0].numel())
        gradient = torch.randn(params[0].shape, generator=generator)
        for param in params:
            param.grad = gradient.clone()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.0), (False, 2e-6)])
def test_equals_torch_over_20_steps(momentum: float, fused: bool, tolerance: float) -> None:
    """Bit for bit torch's fused SGD, and its plain loops to rounding; the rate changes at each step."""
    ours, theirs = parameters(), parameters()
    mine = SGD(ours, lr=0.1, momentum=momentum, weight_decay=0.01)
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01}
    reference = torch.optim.SGD(theirs, **settings, fused=fused, foreach=False)  # type: ignore[arg-type]
    for step in range(20):
        set_gradients(step, ours, theirs)
        for group in (*mine.param_groups, *reference.param_groups):
            group["lr"] = 0.1 / (step + 1)
        mine.step()
        reference.step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)


def test_state_is_one_tensor_and_goes_on() -> None:
    """Ten steps, saved and loaded elsewhere, then ten more: the same bits as twenty; a second moment in what is
    loaded is left out."""
    whole, first = parameters(), parameters()
    uninterrupted = SGD(whole, lr=0.1, momentum=0.9, weight_decay=0.0)
    optimizer = SGD(first, lr=0.1, momentum=0.9, weight_decay=0.0)
    for step in range(10):
        set_gradients(step, whole, first)
        uninterrupted.step()
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        assert set(state) == {"exp_avg"}
        state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
    second = copy.deepcopy(first)
    continued = SGD(second, lr=0.1, momentum=0.9, weight_decay=0.0)
    continued.load_state_dict(saved)
    assert continued.param_groups[0]["step"] == 10
    for step in range(10, 20):
        set_gradients(step, whole, second)
        uninterrupted.step()
        continued.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))
    assert all(set(state) == {"exp_avg"} for state in continued.state.values())
