"""Intervals of a change of loss: how often they hold the truth, and what they are made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.forgetting.bootstrap import Change, Interval, mean_change


def drawn(generator: np.random.Generator, name: str, windows: int, mean: float) -> Change:
    """Windows of unequal length whose change per token has this mean; skewed, as losses of text are."""
    tokens_W = generator.integers(64, 257, windows).astype(np.float64)
    noise_W = generator.gamma(2.0, 0.1, windows) - 0.2
    return Change(name, (mean + noise_W) * tokens_W, tokens_W)


@pytest.mark.parametrize("windows", [12, 60])
def test_coverage(windows: int) -> None:
    """A 95 % interval of two sets holds the true mean of both in 92 to 98 of 100 cases."""
    generator = np.random.default_rng(windows)
    held = 0
    trials = 500
    for trial in range(trials):
        changes = [drawn(generator, "a", windows, 0.1), drawn(generator, "b", windows, 0.0)]
        interval = mean_change(changes, trial, resamples=400)
        held += interval.low <= 0.05 <= interval.high
    assert 0.92 <= held / trials <= 0.98


def test_without_the_widening_it_would_be_too_narrow() -> None:
    """At 12 windows the plain percentile interval covers less; the widening is what the test above holds by."""
    from cptron.forgetting import bootstrap

    generator = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        change = drawn(generator, "a", 8, 0.1)
        found = change.deviations(trial, 0.95, 400) / bootstrap._widening(8, 0.95)
        own = change.nats_W.sum() / change.weight_W.sum()
        low, high = np.quantile(found, [0.025, 0.975]) + own
        held += low <= 0.1 <= high
    assert held / 300 < 0.92


def test_paired_windows_see_what_unpaired_would_not() -> None:
    """Windows differ by nats, the change by a thousandth: the pairs know."""
    generator = np.random.default_rng(1)
    before_W = generator.normal(400, 100, 50)
    now_W = before_W + 0.256 + generator.normal(0, 0.1, 50)
    interval = mean_change([Change("a", now_W - before_W, np.full(50, 256.0))], 1)
    assert 0.0005 < interval.low < 0.001 < interval.high < 0.0015


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.floats(-2, 2), st.integers(0, 5))
def test_a_constant_moves_the_interval_and_nothing_else(
    values: list[float], constant: float, seed: int
) -> None:
    weight_W = np.arange(1.0, len(values) + 1)
    plain = mean_change([Change("a", np.array(values), weight_W)], seed, resamples=50)
    moved = mean_change([Change("a", np.array(values) + constant * weight_W, weight_W)], seed, resamples=50)
    for one, other in zip(
        (plain.estimate, plain.low, plain.high), (moved.estimate, moved.low, moved.high), strict=True
    ):
        assert other == pytest.approx(one + constant, abs=1e-9)
    assert plain.low <= plain.estimate + 1e-12 and plain.estimate - 1e-12 <= plain.high


def test_the_same_windows_are_drawn_each_time_and_others_for_another_seed() -> None:
    change = drawn(np.random.default_rng(3), "a", 30, 0.0)
    assert mean_change([change], 7) == mean_change([change], 7) != mean_change([change], 8)


def test_many_windows_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are held at a time changes nothing."""
    change = drawn(np.random.default_rng(4), "a", 30, 0.0)
    whole = mean_change([change], 7, resamples=100)
    monkeypatch.setattr("cptron.forgetting.bootstrap._AT_ONCE", 30 * 7)
    assert mean_change([change], 7, resamples=100) == whole


def test_one_window_is_sure_of_nothing() -> None:
    found = mean_change([Change("a", np.array([2.0]), np.array([4.0]))], 1)
    assert found == Interval(0.5, -math.inf, math.inf)
