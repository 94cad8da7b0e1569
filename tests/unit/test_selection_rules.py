"""The rules of selection against brute force: every pair is compared, every sum is written out."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.errors import ConfigError
from cptron.forgetting.bootstrap import Interval
from cptron.selection.rules import Choice, Point, Rule, choose, front, is_within, scores

FEW = st.integers(-4, 4).map(lambda value: value / 4)
"""So few values that ties are common."""


def interval(estimate: float, half: float = 0.1) -> Interval:
    """Of this half width."""
    return Interval(estimate, estimate - half, estimate + half)


@st.composite
def point_lists(draw: st.DrawFn) -> list[Point]:
    """One to eight points of different names, in any order."""
    count = draw(st.integers(1, 8))
    halves = st.sampled_from([0.0, 0.3, math.inf])
    return [
        Point(
            f"p{number}",
            draw(st.integers(1, 3)),
            interval(draw(FEW), draw(halves)),
            interval(draw(FEW), draw(halves)),
            {"probe/p": draw(FEW)},
        )
        for number in draw(st.permutations(range(count)))
    ]


def names(choice: Choice) -> list[str]:
    """Of what was chosen."""
    return [point.name for point in choice.chosen]


@given(point_lists(), FEW)
def test_constrained(points: list[Point], epsilon: float) -> None:
    """Nobody within has learned more; where they are equal, nobody has forgotten less, and nobody is earlier. Without
    any, nobody's interval reaches less far."""
    choice = choose(Rule(epsilon_nats=epsilon), points)
    within = [point for point in points if point.old.high <= epsilon]
    assert [is_within(point, epsilon) for point in points] == [point in within for point in points]
    if not within:
        assert choice.chosen == () and choice.nearest is not None
        assert all(choice.nearest.old.high <= point.old.high for point in points)
        assert choice.nearest.name in choice.reason and "none of" in choice.reason
        return
    (best,) = choice.chosen
    assert best in within and choice.nearest is None and best.name in choice.reason

    def key(point: Point) -> tuple[float, float, int, str]:
        assert point.new is not None
        return point.new.estimate, point.old.estimate, point.tokens_total, point.name

    assert not any(key(point) < key(best) for point in within)
    assert names(choose(Rule(epsilon_nats=epsilon), points[::-1])) == [best.name]


def test_constrained_without_new_data() -> None:
    """The latest that is within has learned most."""
    points = [Point(f"p{tokens}", tokens, interval(tokens / 10, 0.0), None) for tokens in (1, 2, 3)]
    choice = choose(Rule(epsilon_nats=0.25), points)
    assert names(choice) == ["p2"] and "no set has suite new" in choice.reason


def dominates(one: Point, other: Point) -> bool:
    """At least as good in both, and better in one."""
    assert one.new is not None and other.new is not None
    differences = (other.old.estimate - one.old.estimate, other.new.estimate - one.new.estimate)
    return min(differences) >= 0 and max(differences) > 0


@given(point_lists())
def test_pareto(points: list[Point]) -> None:
    """Exactly those that no other dominates, each once, whatever the order."""
    expected = {point.name for point in points if not any(dominates(other, point) for other in points)}
    choice = choose(Rule(mode="pareto"), points)
    assert sorted(names(choice)) == sorted(expected)
    assert front(points[::-1]) == list(choice.chosen)
    learned = [point.new.estimate for point in choice.chosen if point.new]
    assert learned == sorted(learned)


@given(point_lists(), st.integers(1, 8).map(lambda value: value / 2), st.booleans())
def test_weighted(points: list[Point], weight: float, probe: bool) -> None:
    """The sum of weight times z, z with the deviation of the population; what is equal everywhere counts nothing."""
    weights = {"old": 1.0, "new": weight} | ({"probe/p": 0.5} if probe else {})
    found = scores(weights, points)
    for point in points:
        expected = 0.0
        for name, factor in weights.items():
            values = [other.values[name] for other in points]
            expected += (
                factor * (point.values[name] - fmean(values)) / pstdev(values) if pstdev(values) else 0.0
            )
        assert found[point.name] == pytest.approx(expected, abs=1e-9)
    choice = choose(Rule(mode="weighted", weights=weights), points)
    assert choice.scores == found
    (best,) = choice.chosen
    assert found[best.name] == min(found.values())


@given(point_lists(), FEW)
def test_what_is_chosen_is_never_dominated_by_what_is_within(points: list[Point], epsilon: float) -> None:
    """The three rules agree with one another."""
    for best in choose(Rule(epsilon_nats=epsilon), points).chosen:
        assert not any(dominates(other, best) for other in points if is_within(other, epsilon))
    (best,) = choose(Rule(mode="weighted", weights={"old": 1.0, "new": 1.0}), points).chosen
    assert best.name in names(choose(Rule(mode="pareto"), points)) or not any(
        dominates(other, best) for other in points
    )


def test_what_was_not_measured_is_refused() -> None:
    """By name, with what there is."""
    points = [Point("a", 1, interval(0.0), None), Point("b", 1, interval(0.0), None, {"valid/x": 1.0})]
    for rule, message in (
        (
            Rule(mode="weighted", weights={"new": 1.0}),
            "--weight new was not measured at all candidates; use old",
        ),
        (Rule(mode="weighted", weights={"valid/x": 1.0}), "--weight valid/x was not measured"),
        (Rule(mode="weighted", weights={"old": -1.0}), "must be a number above 0"),
        (Rule(mode="weighted", weights={"old": math.nan}), "must be a number above 0"),
        (Rule(mode="weighted"), "needs weights"),
        (Rule(mode="pareto"), "no set has suite new"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose(rule, points)
