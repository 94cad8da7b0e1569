"""Which ranks are slow, by simulation: who is slowed is named, whoever is not is not."""

from __future__ import annotations

import random

import pytest

from cptron.health.outliers import LEAST_S, WINDOW, standings


def simulated(
    stages: list[int], slowed: dict[int, float], noise: float, seed: int, hiccup: bool = False
) -> list[list[float]]:
    """Own seconds by measurement and rank: a second each, times a factor, with noise; one measurement may be wild."""
    draw = random.Random(seed)
    rows = [
        [slowed.get(rank, 1.0) * (1 + draw.gauss(0, noise)) for rank in range(len(stages))]
        for _ in range(WINDOW)
    ]
    if hiccup:
        rows[draw.randrange(WINDOW)][draw.randrange(len(stages))] *= 10
    return rows


def slow(
    rows: list[list[float]], stages: list[int], weights: list[float] | None = None, limit: float = 1.2
) -> list[int]:
    found = standings(rows, stages, weights or [1.0] * len(stages), limit)
    return [rank for rank, standing in enumerate(found) if standing.is_slow]


@pytest.mark.parametrize("count", [2, 3, 8, 64])
@pytest.mark.parametrize("seed", range(20))
def test_a_slow_rank_is_named_and_nobody_without_one(count: int, seed: int) -> None:
    stages = [0] * count
    assert slow(simulated(stages, {1: 1.4}, 0.02, seed), stages) == [1]
    assert slow(simulated(stages, {}, 0.02, seed, hiccup=True), stages) == []


@pytest.mark.parametrize("seed", range(20))
def test_noise_that_all_have_raises_the_bar(seed: int) -> None:
    """Ranks whose medians are 20 % apart by themselves: 1.3 times is none, three times is one."""
    stages, draw = [0] * 16, random.Random(seed)
    own = [draw.uniform(0.8, 1.2) for _ in stages]
    rows = [[value * draw.uniform(0.98, 1.02) for value in own] for _ in range(WINDOW)]
    assert slow(rows, stages) == []
    assert slow([[row[0] * 4, *row[1:]] for row in rows], stages) == [0]


def test_stages_are_compared_with_their_own_kind() -> None:
    """The last stage has more to do: its ranks are no stragglers, and a slow one of them is one."""
    stages, weights = [0, 0, 0, 1, 1, 1], [1.0] * 6
    usual = [[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]] * WINDOW
    assert slow(usual, stages, weights) == []
    assert slow([[1.0, 1.0, 1.0, 2.0, 2.9, 2.0]] * WINDOW, stages, weights) == [4]


def test_a_stage_without_peers_is_compared_by_its_share_of_the_weights() -> None:
    stages, weights = [0, 1], [1.0, 3.0]
    assert slow([[1.0, 3.0]] * WINDOW, stages, weights) == []
    assert slow([[1.0, 4.5]] * WINDOW, stages, weights) == []  # 1.5 times: not sure enough across stages
    assert slow([[1.0, 6.0]] * WINDOW, stages, weights) == [1]
    assert slow([[2.0, 3.0]] * WINDOW, stages, weights) == [0]


def test_what_is_too_short_to_matter_is_no_straggler() -> None:
    assert slow([[LEAST_S, LEAST_S * 1.9]] * WINDOW, [0, 0]) == []
    assert slow([[LEAST_S, LEAST_S * 2.1]] * WINDOW, [0, 0]) == [1]
