"""What a chart shows, without a word of how it is drawn: the same for the still picture and for the script of the page.

Place in the flow: `charts`, `forgetting` and `compare` make charts of it; `figure` writes them. Invariant: numbers are
JSON numbers or None, so that no value can break out of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Column = Sequence[float | None]

KINDS = {
    "resume": "start or stop",
    "replay": "steps made again",
    "fault": "spike or fault",
    "policy": "forgetting policy",
    "gap": "gap in the log",
    "save": "checkpoint",
    "selected": "selected checkpoint",
}
"""Kind of an event -> in words."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grid:
    """The places of the points that several lines share."""

    step: Column
    tokens: Column
    """Trained on until then."""
    hours: Column
    """Of steps until then."""
    count: Sequence[int] | None = None
    """Steps that each point stands for; None: one."""
    breaks: Sequence[int] = ()
    """Points before which the log has a gap."""


@dataclass(frozen=True, slots=True)
class Values:
    """One number a point of a grid."""

    y: Column
    low: Column | None = None
    high: Column | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    """Point -> what there was instead of numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve."""

    label: str
    grid: Grid
    values: Values
    color: int
    interval: bool = False
    """`low` and `high` are an interval of confidence, not extremes."""
    faint: bool = False
    """Not in the legend: a background."""
    off: bool = False
    """Not shown until asked for."""
    dots: bool = False
    """Few and sure enough that each point gets a mark, and no smoothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One figure."""

    title: str
    unit: str
    """Of y; what is shown."""
    lines: Sequence[Line]
    zero: bool = False
    """0 is part of the y axis."""
    levels: Sequence[tuple[float, str]] = ()
    smooth: bool = False
    """Noisy from step to step: smoothed at first."""
    per_run: bool = False
    """Colours mean runs."""

    @property
    def is_empty(self) -> bool:
        """No line has a point."""
        return not any(value is not None for line in self.lines for value in line.values.y)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened at a step: a mark in every chart."""

    kind: str
    """One of `KINDS`."""
    text: str
    step: float
    tokens: float | None
    hours: float | None
    run: int = 0
    until: tuple[float, float | None, float | None] | None = None
    """Step, tokens and hours of the end of a stretch."""
