"""Intervals cover what they should: Student's where the law is linear, close to 95 % where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from mixture_world import two_domains

from cptron.mixture.bootstrap import bootstrap, interval
from cptron.mixture.laws.power import PowerLaw
from cptron.mixture.points import Array, Inputs


class Line:
    """a + b share: a law with an exact theory."""

    formula = "a + b r"
    parameters = ("a", "b")
    scalars: frozenset[str] = frozenset()

    def values(self, parameters: Array, inputs: Inputs) -> Array:
        return np.asarray(parameters[0] + parameters[1] * inputs.shares[:, 0])

    def fit(
        self, inputs: Inputs, losses: Array, rng: np.random.Generator, start: Array | None = None
    ) -> Array:
        design = np.stack([np.ones(len(losses)), inputs.shares[:, 0]], axis=1)
        return np.asarray(np.linalg.lstsq(design, losses, rcond=None)[0])

    def num_effective(self, inputs: Inputs, losses: Array) -> float:
        return 2.0


def runs(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_interval_of_a_line_is_students() -> None:
    """With four degrees of freedom, where the normal one would be a third too narrow."""
    from scipy.stats import t

    inputs = two_domains([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
    losses = 2 - inputs.shares[:, 0] + np.array([0.02, -0.03, 0.01, 0.0, 0.02, -0.02])
    law = Line()
    parameters = law.fit(inputs, losses, np.random.default_rng(0))
    low, high = interval(bootstrap(law, parameters, inputs, losses, runs(6), 4000, 1))
    design = np.stack([np.ones(6), inputs.shares[:, 0]], axis=1)
    residuals = losses - law.values(parameters, inputs)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * (residuals @ residuals) / 4)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, 4) * errors, rel=0.06)
    assert (high + low) / 2 == pytest.approx(parameters, abs=0.2 * float(errors.max()))


def covered(law: Line | PowerLaw, inputs: Inputs, true: Array, at: Inputs, trials: int, draws: int) -> float:
    """Part of the trials in which the interval of the law at `at` holds the truth."""
    exact, goal = law.values(true, inputs), law.values(true, at)[0]
    hits = 0
    for trial in range(trials):
        rng = np.random.default_rng([11, trial])
        losses = exact + 0.004 * rng.standard_normal(len(inputs))
        parameters = law.fit(inputs, losses, rng)
        found = bootstrap(law, parameters, inputs, losses, runs(len(inputs)), draws, trial)
        low, high = interval(np.array([law.values(one, at) for one in found]))
        hits += bool(low[0] <= goal <= high[0])
    return hits / trials


def test_coverage_of_a_line() -> None:
    """92 to 98 % of 300 data sets of five points."""
    inputs = two_domains([0.05, 0.2, 0.4, 0.7, 1.0])
    assert 0.92 <= covered(Line(), inputs, np.array([2.0, -0.5]), two_domains([0.5]), 300, 100) <= 0.98


def test_coverage_of_a_power_law() -> None:
    """Eight points, three parameters, one of them an exponent. Few trials here: a broken interval covers far less."""
    inputs = two_domains([0.05, 0.1, 0.2, 0.33, 0.5, 0.66, 0.8, 1.0])
    found = covered(PowerLaw((0,)), inputs, np.array([1.2, 0.9, -0.4]), two_domains([0.4]), 40, 40)
    assert found >= 0.85


def test_points_of_one_run_share_their_noise() -> None:
    """Four runs of five evaluations: the intervals are wider than if all twenty were runs of their own, of the slope by
    two."""
    rng = np.random.default_rng(4)
    shares = np.repeat([0.1, 0.4, 0.7, 1.0], 5)
    inputs = two_domains(list(shares))
    losses = 2 - shares + np.repeat(rng.normal(0, 0.03, 4), 5) + rng.normal(0, 0.001, 20)
    law = Line()
    parameters = law.fit(inputs, losses, rng)
    names = [str(number) for number in np.repeat(range(4), 5)]
    widths = []
    for one in (names, runs(20)):
        low, high = interval(bootstrap(law, parameters, inputs, losses, one, 800, 0))
        widths.append(high - low)
    assert widths[0][0] > 1.3 * widths[1][0]
    assert widths[0][1] > 2 * widths[1][1]


def test_draws_are_those_of_the_seed() -> None:
    """The same again for the same seed; the first ones do not depend on how many there are."""
    inputs = two_domains([0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    losses = 1.2 + 0.9 * inputs.shares[:, 0] + np.array([0.01, -0.01, 0.02, 0.0, -0.02, 0.01])
    law = Line()
    parameters = law.fit(inputs, losses, np.random.default_rng(0))
    first, second = (bootstrap(law, parameters, inputs, losses, runs(6), count, 3) for count in (50, 80))
    assert first.tolist() == second[:50].tolist()
    assert first.tolist() != bootstrap(law, parameters, inputs, losses, runs(6), 50, 4).tolist()
