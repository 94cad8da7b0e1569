"""The learning rate against golden values, Megatron's own scheduler and formulas of its own."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from schedule_cases import schedules

from cptron.config.schema import OptimConfig
from cptron.optim.decay import LEFT, decayed
from cptron.optim.phases import phases
from cptron.optim.schedule import learning_rate

COSINE = OptimConfig(lr=3e-4, lr_min=3e-5, warmup_steps=10)
WSD = replace(COSINE, schedule="wsd", anneal_steps=200)
INFINITE = replace(
    COSINE,
    schedule="infinite",
    cooldown_steps=600,
    lr_constant=1.65e-4,
    anneal_steps=100,
    decay_form="geometric",
)
GOLDEN = [
    (COSINE, {0: 3.000000e-05, 9: 3.000000e-04, 250: 2.627041e-04, 505: 1.650000e-04, 999: 3.000068e-05}),
    (replace(WSD, decay_form="linear"), {850: 2.325000e-04, 900: 1.650000e-04, 999: 3.135000e-05}),
    (replace(WSD, decay_form="cosine"), {850: 2.604594e-04, 900: 1.650000e-04, 999: 3.001665e-05}),
    (replace(WSD, decay_form="exponential"), {850: 2.140841e-04, 900: 1.418377e-04, 999: 3.093737e-05}),
    (replace(WSD, decay_form="minus_sqrt"), {850: 1.650000e-04, 900: 1.090812e-04, 999: 3.067585e-05}),
    (INFINITE, {160: 2.802297e-04, 310: 2.325000e-04, 899: 1.65e-4, 950: 7.035624e-05, 1000: 3e-5}),
    (
        replace(INFINITE, cooldown_form="inverse_sqrt"),
        {160: 2.100351e-04, 310: 1.856295e-04, 899: 1.65e-4, 950: 7.035624e-05, 1000: 3e-5},
    ),
]
"""Runs of 1,000 steps, worked out by hand to seven digits."""


@pytest.mark.parametrize(("optim", "rates"), GOLDEN, ids=lambda value: getattr(value, "schedule", ""))
def test_golden_values(optim: OptimConfig, rates: dict[int, float]) -> None:
    for step, expected in rates.items():
        assert learning_rate(optim, step, 1000) == pytest.approx(expected, rel=1e-6), step


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


@pytest.fixture(scope="module")
def megatron_scheduler() -> Any:
    """megatron-core's class; an optimizer of one group is all that it needs."""
    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    return OptimizerParamScheduler


@pytest.mark.parametrize(
    ("optim", "style"),
    [
        (COSINE, "cosine"),
        (replace(COSINE, warmup_steps=0, decay_steps=700), "cosine"),
        (replace(COSINE, schedule="constant"), "constant"),
        (replace(COSINE, schedule="inverse_sqrt"), "inverse-square-root"),
        *(
            (replace(WSD, decay_form=form), "WSD")
            for form in ("linear", "cosine", "exponential", "minus_sqrt")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.decay_form,
)
def test_equals_megatron(megatron_scheduler: Any, optim: OptimConfig, style: str) -> None:
    """After the warm-up at the same count of steps; within it Megatron's count is one more: its first step has rate 0,
    ours the first part of the rise."""

    groups = SimpleNamespace(param_groups=[{"lr": 0.0}])

    unbounded = style == "inverse-square-root"  # ours has no last step
    theirs = megatron_scheduler(
        groups,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=optim.lr_min,
        lr_warmup_steps=optim.warmup_steps,
        lr_decay_steps=10**9 if unbounded else optim.decay_steps or 1000,
        lr_decay_style=style,
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=0,
        wd_incr_style="constant",
        wsd_decay_steps=optim.anneal_steps or None,
        lr_wsd_decay_style=optim.decay_form,
    )
    for step in range(1200):
        count = step + 1 if step < optim.warmup_steps else step
        if count > theirs.num_steps:
            theirs.step(count - theirs.num_steps)
        assert learning_rate(optim, step, 1000) == pytest.approx(groups.param_groups[0]["lr"], rel=1e-12), (
            step
        )


@given(schedules(), st.integers(0, 300))
def test_rises_in_the_warm_up_and_never_after(case: tuple[OptimConfig, int], step: int) -> None:
    optim, steps = case
    now, then = (learning_rate(optim, number, steps) for number in (step, step + 1))
    lowest = optim.warmup_from if step < optim.warmup_steps else optim.lr_min
    assert lowest <= now <= optim.lr * (1 + 1e-12)
    if step + 1 < optim.warmup_steps:
        assert now <= then
    elif step >= optim.warmup_steps:
        assert then <= now * (1 + 1e-12)


@given(schedules())
def test_joins_are_continuous(case: tuple[OptimConfig, int]) -> None:
    """Every stretch begins at the value at which the one before it ends."""
    optim, steps = case
    constant = optim.lr_constant if optim.schedule == "infinite" else optim.lr
    begins = {"cool-down": optim.lr, "constant": constant, "decayed": optim.lr_min}
    begins["decay"] = constant if optim.anneal_steps else optim.lr
    for phase in phases(optim, steps):
        if phase.name == "warm-up":
            top = learning_rate(optim, optim.warmup_steps - 1, steps)
            assert top == pytest.approx(optim.lr)
        else:
            assert learning_rate(optim, phase.first, steps) == pytest.approx(begins[phase.name], rel=1e-12)


@given(schedules(), st.integers(1, 200), st.integers(0, 400))
def test_a_longer_run_keeps_the_rates_before_its_decay(
    case: tuple[OptimConfig, int], more: int, step: int
) -> None:
    """What has an end of its own, or none, does not know the length of the run; what ends with the run is the same
    until the decay of the shorter one begins."""
    optim, steps = case
    ends_with_the_run = optim.decay_steps == 0 and (optim.schedule in ("cosine", "wsd") or optim.anneal_steps)
    if ends_with_the_run:
        assume(optim.schedule != "cosine" or step < optim.warmup_steps)
        assume(optim.schedule == "cosine" or step <= steps - optim.anneal_steps)
    assert learning_rate(optim, step, steps + more) == learning_rate(optim, step, steps)


@given(schedules())
def test_clamped_after_the_end(case: tuple[OptimConfig, int]) -> None:
    """Exactly `lr_min`, however long the run goes on."""
    optim, steps = case
    assume(phases(optim, steps)[-1].name == "decayed")
    end = optim.decay_steps or steps
    assert {learning_rate(optim, step, steps) for step in (end, end + 1, 10 * end)} == {optim.lr_min}


@pytest.mark.parametrize("form", [*LEFT, "geometric"])
def test_forms_fall_from_the_first_value_to_the_second(form: str) -> None:
    """Strictly, and to exactly the second; between equal values nothing moves, not even by rounding."""
    rates = [decayed(3e-4, 3e-5, form, number / 64) for number in range(66)]
    assert rates[0] == pytest.approx(3e-4, rel=1e-15)
    assert rates[64:] == [3e-5, 3e-5]
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[:65]))
    assert {decayed(1.65e-4, 1.65e-4, form, number / 64) for number in range(66)} == {1.65e-4}


def test_warm_up_from_a_rate() -> None:
    """A re-warm from where the pretraining ended."""
    optim = replace(COSINE, warmup_from=3e-5)
    rates = [learning_rate(optim, step, 1000) for step in range(10)]
    assert rates == pytest.approx([3e-5 + 2.7e-5 * (step + 1) for step in range(10)])


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
