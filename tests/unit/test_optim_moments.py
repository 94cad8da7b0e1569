"""bf16 moments: close to fp32 within a stated bound, half the bytes, and why beta2 has a limit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from cptron.optim import adamw
from cptron.optim.adamw import AdamW

STEPS = 200
RATES: dict[str, Any] = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1}


def parameters() -> list[torch.nn.Parameter]:
    """Of several sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(70, 30), (50,), (1,)]]


def train(optimizer: AdamW, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    """Noisy gradients, each parameter of another size."""
    for step in range(first, last):
        for number, param in enumerate(params):
            generator = torch.Generator().manual_seed(10 * step + number)
            param.grad = (torch.randn(param.shape, generator=generator) + 0.3) * 10.0 ** (-3 * number)
        optimizer.step()


def test_close_to_fp32_moments() -> None:
    """After 200 steps the difference is at most 2 % of the way each weight could have gone (lr * steps), and on
    average 0.2 %; no bias shows."""
    ours, theirs = parameters(), parameters()
    train(AdamW(ours, **RATES, betas=(0.9, 0.95), moments=torch.bfloat16), ours, 0, STEPS)
    train(AdamW(theirs, **RATES, betas=(0.9, 0.95)), theirs, 0, STEPS)
    difference = torch.cat(
        [(our - their).detach().flatten() for our, their in zip(ours, theirs, strict=True)]
    )
    way = RATES["lr"] * STEPS
    assert float(difference.abs().max()) <= 0.02 * way
    assert float(difference.abs().mean()) <= 0.002 * way
    assert abs(float(difference.mean())) <= 0.001 * way
    assert float(difference.abs().max()) > 0


@pytest.mark.parametrize(("beta2", "stalls"), [(0.999, True), (0.99, False), (0.95, False)])
def test_second_moment_stalls_beyond_the_limit(beta2: float, stalls: bool) -> None:
    """Gradients fall from 1 to 0: the second moment must decay. At 0.999 a step changes it by less than half of
    bf16's spacing, so it stays for ever; up to 0.99 it goes on. That is why `check_optim` has its rule."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = AdamW(
        [param], lr=1e-3, betas=(0.9, beta2), eps=1e-8, weight_decay=0.0, moments=torch.bfloat16
    )
    param.grad = torch.ones(4)
    for _ in range(3000):
        optimizer.step()
    before = optimizer.state[param]["exp_avg_sq"].clone()
    param.grad = torch.zeros(4)
    for _ in range(3000):
        optimizer.step()
    after = optimizer.state[param]["exp_avg_sq"]
    assert torch.equal(before, after) == stalls
    assert stalls or float(after.max()) < 1e-3 * float(before.max())
    assert (float(before.max()) < 0.5) == stalls, (
        "at 0.999 it does not even rise to half the squared gradient"
    )
    assert stalls or float(before.max()) >= 0.8


def test_state_is_bf16_and_survives_a_load() -> None:
    """Also from fp32 state, as checkpoints hold it; ten steps and ten more are twenty, to the bit."""
    whole, first = parameters(), parameters()
    settings = {**RATES, "betas": (0.9, 0.95), "moments": torch.bfloat16}
    train(AdamW(whole, **settings), whole, 0, 20)
    optimizer = AdamW(first, **settings)
    train(optimizer, first, 0, 10)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for name in state:
            state[name] = state[name].float()
    second = copy.deepcopy(first)
    continued = AdamW(second, **settings)
    continued.allocate()
    continued.load_state_dict(saved)
    assert {t.dtype for state in continued.state.values() for t in state.values()} == {torch.bfloat16}
    train(continued, second, 10, 20)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


@pytest.mark.parametrize("limit", [1, 7, 64, 2100, 2151, 10_000])
def test_scratch_is_bounded_and_does_not_change_the_result(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pieces; none is larger than the limit."""
    ours, theirs = parameters(), parameters()
    settings = {**RATES, "betas": (0.9, 0.95), "moments": torch.bfloat16}
    steps = 1 if limit == 1 else 3
    train(AdamW(theirs, **settings), theirs, 0, steps)
    monkeypatch.setattr(adamw, "SCRATCH_ELEMENTS", limit)
    sizes: list[int] = []
    update = adamw._adamw

    def counted(group: Any, pieces: list[Any]) -> None:
        sizes.append(sum(piece[0].numel() for piece in pieces))
        update(group, pieces)

    monkeypatch.setattr(adamw, "_adamw", counted)
    train(AdamW(ours, **settings), ours, 0, steps)
    assert max(sizes) <= limit and sum(sizes) == steps * 2151
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)
