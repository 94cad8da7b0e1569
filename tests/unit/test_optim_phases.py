"""Stretches of a schedule: they cover every step once, and each does what its name says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import schedules

from cptron.config.schema import OptimConfig
from cptron.optim.phases import constant_phase, describe_schedule, is_constant_at, phase_at, phases
from cptron.optim.schedule import learning_rate

INFINITE = OptimConfig(
    lr=3e-4,
    lr_min=3e-5,
    schedule="infinite",
    warmup_steps=10,
    cooldown_steps=600,
    lr_constant=1.65e-4,
    anneal_steps=100,
)


@given(schedules())
def test_they_follow_each_other_without_gap(case: tuple[OptimConfig, int]) -> None:
    found = phases(*case)
    assert found[0].first == 0 and found[-1].stop is None
    assert all(before.stop == after.first for before, after in itertools.pairwise(found))
    assert all(phase.stop is None or phase.stop > phase.first for phase in found)


@given(schedules(), st.integers(0, 300))
def test_the_rate_does_what_the_name_says(case: tuple[OptimConfig, int], step: int) -> None:
    optim, steps = case
    name = phase_at(optim, step, steps).name
    now, then = (learning_rate(optim, number, steps) for number in (step, step + 1))
    if phase_at(optim, step + 1, steps).name != name:
        return
    if name in ("constant", "decayed"):
        assert now == then
    elif name == "warm-up":
        assert now < then
    else:
        assert then < now or now == then == optim.lr_min or optim.lr == optim.lr_constant


@given(schedules(), st.integers(0, 300))
def test_constant_is_what_has_been_and_goes_on_at_one_rate(case: tuple[OptimConfig, int], step: int) -> None:
    """Also where the decay begins with the next step: nothing of it is in the weights yet."""
    optim, steps = case
    constant = constant_phase(optim, steps)
    inside = constant is not None and constant.first <= step <= (constant.stop or step)
    assert is_constant_at(optim, step, steps) == inside


def test_a_schedule_in_words() -> None:
    assert describe_schedule(INFINITE, 1000) == (
        "learning rate: infinite; warm-up from step 0 at 3e-05, cool-down from step 10 at 0.0003, constant from step "
        "610 at 0.000165, decay from step 900 at 0.000165, decayed from step 1000 at 3e-05"
    )
    assert [str(phase) for phase in phases(replace(INFINITE, anneal_steps=0), 1000)] == [
        "warm-up (steps 0 to 9)",
        "cool-down (steps 10 to 609)",
        "constant (steps 610 on)",
    ]


@pytest.mark.parametrize("step", [609, 610, 900, 901])
def test_borders_of_the_constant_phase(step: int) -> None:
    assert is_constant_at(INFINITE, step, 1000) == (610 <= step <= 900)
