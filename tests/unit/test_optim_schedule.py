"""The learning rate against golden values and a formula of its own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.config.schema import OptimConfig
from cptron.optim.schedule import learning_rate

COSINE = OptimConfig(lr=3e-4, lr_min=3e-5, warmup_steps=10)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 3.000000e-05),
        (9, 3.000000e-04),
        (250, 2.627041e-04),
        (505, 1.650000e-04),
        (999, 3.000068e-05),
    ],
)
def test_golden_values(step: int, expected: float) -> None:
    """1,000 steps of cosine from 3e-4 to 3e-5 after 10 of warm-up, worked out by hand."""
    assert learning_rate(COSINE, step, 1000) == pytest.approx(expected, rel=3e-7)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 400), st.integers(0, 1000))
def test_shape_of_the_cosine(warmup: int, decay: int, step: int) -> None:
    """Rises along a line to `lr`, never rises after, ends at `lr_min` and stays there."""
    optim = OptimConfig(lr=1.0, lr_min=0.1, warmup_steps=warmup, decay_steps=warmup + decay)
    rate = learning_rate(optim, step, 10)
    if step < warmup:
        assert rate == (step + 1) / warmup
    elif step >= warmup + decay:
        assert rate == pytest.approx(0.1)
    else:
        turned = math.pi * (step - warmup) / decay
        assert rate == pytest.approx(0.1 + 0.9 * math.cos(turned / 2) ** 2)
        assert learning_rate(optim, step + 1, 10) < rate <= 1.0


def test_constant_after_warm_up() -> None:
    """Whatever the number of steps."""
    optim = OptimConfig(lr=2e-4, lr_min=1e-5, warmup_steps=4, schedule="constant")
    assert [learning_rate(optim, step, 8) for step in range(8)] == pytest.approx(
        [5e-5, 1e-4, 1.5e-4, *[2e-4] * 5]
    )


def test_decay_ends_with_the_run_unless_told() -> None:
    """`decay_steps` beats `train.steps`, so that a run can be extended on the same curve."""
    told = OptimConfig(lr=3e-4, lr_min=3e-5, warmup_steps=10, decay_steps=1000)
    for step in (0, 9, 10, 250, 999):
        assert learning_rate(told, step, 50) == learning_rate(COSINE, step, 1000)
    assert learning_rate(told, 5000, 50) == pytest.approx(3e-5)


def test_all_warm_up() -> None:
    """A run that ends inside its warm-up, or just after, divides by nothing."""
    optim = OptimConfig(lr=1.0, warmup_steps=5)
    assert [learning_rate(optim, step, 5) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
