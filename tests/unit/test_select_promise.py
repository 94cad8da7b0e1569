"""The precision that a classifier promises: bounds against fractions, and how often the promise is broken."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from cptron.corpus.select.promise import (
    Scored,
    least_examples,
    lower_bound,
    promised_threshold,
    thresholds,
)
from cptron.errors import DataError


def chance(right: int, found: int, share: Fraction) -> Fraction:
    """Of `right` or more of `found`, by the sum that defines it."""
    return sum(
        (math.comb(found, k) * share**k * (1 - share) ** (found - k) for k in range(right, found + 1)),
        Fraction(0),
    )


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_bound_is_where_the_chance_is_that_of_an_error(confidence: float) -> None:
    """Against exact fractions: at the bound the chance is at most that, a little above it is more."""
    error = 1 - Fraction(confidence)
    for found in (1, 2, 7, 30):
        for right in range(1, found + 1):
            bound = lower_bound(right, found, confidence)
            assert 0 <= bound <= right / found
            assert chance(right, found, Fraction(bound)) <= error
            assert chance(right, found, Fraction(bound) + Fraction(3, 10**6)) > error


def test_known_bounds() -> None:
    """Of tables: 95 %, one-sided; how many examples a promise needs."""
    assert lower_bound(29, 29, 0.95) == pytest.approx(0.9018, abs=1e-4)
    assert lower_bound(90, 100, 0.95) == pytest.approx(0.8363, abs=1e-4)
    assert lower_bound(0, 5, 0.95) == 0.0
    assert [least_examples(p, 0.95) for p in (0.5, 0.9, 0.95, 0.99)] == [5, 29, 59, 299]


def drawn(count: int, generator: np.random.Generator) -> Scored:
    """Scores from 0 to 1; a document is positive with a chance of twice its score, surely from 0.5 on: the precision
    from a threshold t below that on is (0.75 - t^2) / (1 - t)."""
    scores = generator.random(count)
    return Scored(scores, generator.random(count) < 2 * scores)


TRUE_THRESHOLD = (0.9 - math.sqrt(0.21)) / 2
"""From which on the precision is 0.9."""


def test_promise_is_broken_no_more_often_than_it_says() -> None:
    """Over many draws, with the truth known; the lowest threshold by the estimate breaks it far more often."""
    broken = refused = by_estimate = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        choosing, held = drawn(100, generator), drawn(200, generator)
        try:
            row = thresholds(choosing, 0.95)
            broken += promised_threshold(row, held, 0.9, 0.95).threshold < TRUE_THRESHOLD
        except DataError:
            refused += 1
        counts = {float(t): held.counts(float(t)) for t in held.scores}
        precise = [t for t, (right, found) in counts.items() if right / found >= 0.9]
        by_estimate += min(precise) < TRUE_THRESHOLD
    assert broken <= 5 and refused <= 10
    assert by_estimate >= 40


def test_row_goes_down_to_the_first_that_fails() -> None:
    """Also where a later one would pass; the estimate and the bound are those of the last that passed."""
    scores = np.repeat([0.9, 0.8, 0.7, 0.6], [60, 3, 8, 200])
    held = Scored(scores, np.isin(scores, [0.9, 0.8, 0.6]))
    found = promised_threshold(np.array([0.9, 0.8, 0.7, 0.6]), held, 0.9, 0.95)
    assert (found.threshold, found.precision, found.recall) == (0.8, 1.0, 63 / 263)
    assert found.precision_bound == lower_bound(63, 63, 0.95) and (found.positives, found.negatives) == (
        263,
        8,
    )
    assert promised_threshold(np.array([0.6]), held, 0.9, 0.95).recall == 1.0
    row = thresholds(held, 0.95)
    assert list(row) == sorted(set(row), reverse=True) and row[-1] == 0.6


def test_no_promise_is_refused() -> None:
    """In one line that says what could be promised."""
    few = Scored(np.linspace(0, 1, 40), np.arange(40) >= 12)
    with pytest.raises(DataError, match=r"^28 positive .* needs 29 at least .* at 95%: 0.898 could be;"):
        promised_threshold(np.array([0.5]), few, 0.9, 0.95)
    mixed = Scored(np.ones(100), np.arange(100) < 90)
    with pytest.raises(DataError, match=r"^precision is 0.900 \(90 of 100\).* 0.836 can be promised at 95%"):
        promised_threshold(np.array([1.0]), mixed, 0.9, 0.95)
