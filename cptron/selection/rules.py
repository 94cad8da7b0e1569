"""Which of several models to keep: three rules over what old and new data have become.

Place in the flow: changes against one base -> here -> `cptron select`, the WiSE-FT grid and the forgetting monitor, all
by the same rule. Imports no torch. Invariant: a pure function of the points, whatever their order; all numbers are
changes of a loss, so that lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cptron.errors import ConfigError, either
from cptron.forgetting.bootstrap import Interval

Mode = Literal["constrained", "pareto", "weighted"]


@dataclass(frozen=True, slots=True)
class Point:
    """One model, as far as the rules ask."""

    name: str
    tokens_total: int
    old: Interval
    """Change of the loss on old data against the base, in nats per token."""
    new: Interval | None
    """The same of new data; None where no set stands for them."""
    sets: Mapping[str, float] = field(default_factory=dict)
    """The same of single sets and probes: `valid/NAME`, `probe/NAME`."""

    @property
    def values(self) -> dict[str, float]:
        """What can be weighted, by name."""
        suites = {"old": self.old.estimate} | ({"new": self.new.estimate} if self.new else {})
        return suites | dict(self.sets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What is asked for."""

    mode: Mode = "constrained"
    epsilon_nats: float = 0.05
    """Of `constrained`: how far the interval of old data may reach."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of `weighted`: name of a value -> its weight."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule comes to."""

    chosen: tuple[Point, ...]
    """One, or the whole list of `pareto`; none where `constrained` finds none within epsilon."""
    nearest: Point | None
    """The one that is nearest to epsilon, where none is within."""
    scores: Mapping[str, float]
    """Name -> weighted sum, of `weighted`."""
    reason: str


def choose(rule: Rule, points: Sequence[Point]) -> Choice:
    """What `rule` makes of one point or more. Raises `ConfigError` where it asks for what was not measured."""
    assert points, "the caller has refused to choose among none"
    if rule.mode == "pareto":
        return _pareto(points)
    if rule.mode == "weighted":
        return _weighted(rule, points)
    return _constrained(rule, points)


def is_within(point: Point, epsilon_nats: float) -> bool:
    """Whether old data has changed by at most epsilon, by the upper end of the interval."""
    return point.old.high <= epsilon_nats


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other is at least as good as in both and better in one, most learned first. Where nothing stands
    for new data, those that have forgotten least."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (_new(point), point.old.estimate)):
        best_old = found[-1].old.estimate if found else math.inf
        is_twin = bool(found) and (_new(found[-1]), best_old) == (_new(point), point.old.estimate)
        if point.old.estimate < best_old or is_twin:
            found.append(point)
    return sorted(found, key=lambda point: (_new(point), point.old.estimate, point.tokens_total, point.name))


def scores(weights: Mapping[str, float], points: Sequence[Point]) -> dict[str, float]:
    """Name -> sum of weight times z, z being the value's distance from the mean of all points in standard deviations; 0
    where they are all equal. Raises `ConfigError` for a name that was not measured."""
    known = set.intersection(*(set(point.values) for point in points))
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(
                f"--weight {name} was not measured at all candidates; use {either(sorted(known))}"
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"--weight {name}={weight} must be a number above 0; correct it")
    found = dict.fromkeys((point.name for point in points), 0.0)
    for name, weight in weights.items():
        values = [point.values[name] for point in points]
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        for point, value in zip(points, values, strict=True):
            if min(values) < max(values):
                found[point.name] += weight * (value - mean) / deviation
    return found


def _constrained(rule: Rule, points: Sequence[Point]) -> Choice:
    within = [point for point in points if is_within(point, rule.epsilon_nats)]
    limit = f"old data at most {rule.epsilon_nats:g} nats per token worse, by the upper end of the interval"
    if not within:
        nearest = min(points, key=lambda point: (point.old.high, point.old.estimate, *_place(point)))
        reason = (
            f"none of {len(points)} has {limit}; nearest is {nearest.name}: {text(nearest.old)} on old data"
        )
        return Choice((), nearest, {}, reason)
    # without new sets the latest has learned most
    best = min(
        within,
        key=lambda point: (
            point.new.estimate if point.new else -point.tokens_total,
            point.old.estimate,
            *_place(point),
        ),
    )
    what = f"lowest loss on new data ({text(best.new)})" if best.new else "latest (no set has suite new)"
    return Choice(
        (best,), None, {}, f"{best.name}: {what} of {len(within)} of {len(points)} that have {limit}"
    )


def _pareto(points: Sequence[Point]) -> Choice:
    if any(point.new is None for point in points):
        raise ConfigError(
            "--mode pareto needs sets of both suites, and no set has suite new; give one of them that"
        )
    found = front(points)
    return Choice(
        tuple(found),
        None,
        {},
        f"{len(found)} of {len(points)} have no other that is better on old and new data",
    )


def _weighted(rule: Rule, points: Sequence[Point]) -> Choice:
    if not rule.weights:
        raise ConfigError("--mode weighted needs weights; give --weight old=1 --weight new=1, or others")
    found = scores(rule.weights, points)
    best = min(points, key=lambda point: (found[point.name], *_place(point)))
    terms = " + ".join(f"{weight:g} z({name})" for name, weight in rule.weights.items())
    return Choice(
        (best,), None, found, f"{best.name}: lowest {terms} = {found[best.name]:+.4f} of {len(points)}"
    )


def _new(point: Point) -> float:
    return point.new.estimate if point.new else 0.0


def _place(point: Point) -> tuple[int, str]:
    """Of equal ones the earlier."""
    return point.tokens_total, point.name


def text(interval: Interval | None) -> str:
    """`+0.0123 [+0.0100, +0.0146]`."""
    if interval is None:
        return "-"
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
