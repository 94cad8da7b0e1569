"""Which checkpoints of a run stay, and why: a pure function of what there is and of the rules.

Place in the flow: asked after every save, by `cptron checkpoint` and by the estimate of the space a run needs. Imports
no torch. Invariant: the newest checkpoint that is good is always kept, and what is kept once is kept again when only
that is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cptron.config.schema import CheckpointConfig


@dataclass(frozen=True, slots=True)
class Milestone:
    """A point of the run whose checkpoint stays."""

    name: str
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What is kept. Without one of the first three nothing is ever deleted; milestones and marks only protect."""

    keep_last: int = 0
    """The newest so many."""
    keep_every_tokens: int = 0
    """The first checkpoint at or past each multiple of so many tokens."""
    keep_best: int = 0
    """The so many with the lowest `best_metric`; of equal ones the earlier."""
    best_metric: str = ""
    milestones: tuple[Milestone, ...] = ()
    """The first checkpoint at or past each."""

    @classmethod
    def of(cls, config: CheckpointConfig) -> Rules:
        """Those of a run."""
        return cls(
            keep_last=config.keep_last,
            keep_every_tokens=config.keep_every_tokens,
            keep_best=config.keep_best,
            best_metric=config.best_metric,
            milestones=tuple(Milestone(item.name, item.tokens) for item in config.milestones),
        )

    @property
    def delete(self) -> bool:
        """Whether what no rule keeps goes."""
        return bool(self.keep_last or self.keep_every_tokens or self.keep_best)


@dataclass(frozen=True, slots=True)
class Saved:
    """A good checkpoint, as far as the rules ask."""

    step: int
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


def kept(saved: Iterable[Saved], rules: Rules) -> dict[int, list[str]]:
    """Step -> why that checkpoint stays; a step that is absent goes. `saved` are the good ones, in any order."""
    ordered = sorted(saved, key=lambda item: item.step)
    reasons: dict[int, list[str]] = {}
    for reason, items in _choices(ordered, rules):
        for item in items:
            reasons.setdefault(item.step, []).append(reason)
    if not rules.delete:
        return {item.step: reasons.get(item.step, []) or ["nothing is deleted"] for item in ordered}
    return reasons


def _choices(ordered: Sequence[Saved], rules: Rules) -> Iterable[tuple[str, Sequence[Saved]]]:
    """(reason, checkpoints that it keeps) of each rule."""
    yield "newest", ordered[-1:]
    if rules.keep_last:
        yield f"last {rules.keep_last}", ordered[-rules.keep_last :]
    if rules.keep_every_tokens:
        yield (
            f"every {rules.keep_every_tokens} tokens",
            _first_past_multiples(ordered, rules.keep_every_tokens),
        )
    for milestone in rules.milestones:
        past = [item for item in ordered if item.tokens >= milestone.tokens]
        yield f"milestone {milestone.name}", past[:1]
    if rules.keep_best:
        metric = rules.best_metric
        measured = [item for item in ordered if math.isfinite(item.metrics.get(metric, math.nan))]
        best = sorted(measured, key=lambda item: (item.metrics[metric], item.step))
        yield f"best {rules.keep_best} by {metric}", best[: rules.keep_best]
    for item in ordered:
        for mark in item.marks:
            yield f"marked {mark}", [item]


def _first_past_multiples(ordered: Sequence[Saved], unit: int) -> list[Saved]:
    before = 0
    found = []
    for item in ordered:
        if item.tokens // unit > before:
            found.append(item)
            before = item.tokens // unit
    return found
