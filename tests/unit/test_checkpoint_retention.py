"""Which checkpoints stay: each rule by its definition, for any set of checkpoints; none deletes the last hope."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cptron.checkpoint.retention import Milestone, Rules, Saved, kept

METRIC = "valid/law/loss_nats_per_token"
small = st.integers(0, 4)


@st.composite
def checkpoints(draw: st.DrawFn) -> list[Saved]:
    """Steps and tokens that grow, some evaluated, some marked, in any order."""
    found, step, tokens = [], 0, 0
    for _ in range(draw(st.integers(0, 12))):
        step, tokens = step + draw(st.integers(1, 3)), tokens + draw(st.integers(0, 40))
        loss = draw(st.sampled_from([None, 1.0, 2.0, 3.0, math.nan, math.inf]))
        marks = draw(st.sampled_from([(), (), ("chosen",)]))
        found.append(Saved(step, tokens, {} if loss is None else {METRIC: loss}, marks))
    return draw(st.permutations(found))


rules = st.builds(
    Rules,
    keep_last=small,
    keep_every_tokens=st.sampled_from([0, 0, 7, 50]),
    keep_best=small,
    best_metric=st.just(METRIC),
    milestones=st.lists(st.builds(Milestone, st.just("m"), st.integers(1, 300)), max_size=2).map(tuple),
)


def stays(item: Saved, everything: list[Saved], asked: Rules) -> bool:
    """Whether some rule keeps `item`, word for word as the rules are documented."""
    earlier = [other for other in everything if other.step < item.step]
    later = [other for other in everything if other.step > item.step]

    def first_past(tokens: int) -> bool:
        return item.tokens >= tokens and not any(other.tokens >= tokens for other in earlier)

    def better(other: Saved) -> bool:
        theirs, ours = other.metrics.get(METRIC, math.nan), item.metrics[METRIC]
        return theirs < ours or (theirs == ours and other.step < item.step)

    unit = asked.keep_every_tokens
    return (
        not (asked.keep_last or unit or asked.keep_best)
        or not later
        or len(later) < asked.keep_last
        or (unit > 0 and any(first_past(unit * k) for k in range(1, item.tokens // unit + 1)))
        or any(first_past(milestone.tokens) for milestone in asked.milestones)
        or bool(item.marks)
        or (
            math.isfinite(item.metrics.get(METRIC, math.nan))
            and sum(map(better, everything)) < asked.keep_best
        )
    )


@given(checkpoints(), rules)
def test_every_rule_by_its_definition(saved: list[Saved], asked: Rules) -> None:
    """Against one that asks each checkpoint by itself; every one that stays has a reason."""
    found = kept(saved, asked)
    assert set(found) == {item.step for item in saved if stays(item, saved, asked)}
    assert all(found.values())


@given(checkpoints(), rules)
def test_what_is_kept_is_kept_again(saved: list[Saved], asked: Rules) -> None:
    """For the same reasons, but for how many are the last: a second prune finds nothing to do. The newest is there."""
    first = kept(saved, asked)
    left = [item for item in saved if item.step in first]
    assert kept(left, asked).keys() == first.keys()
    if saved:
        assert "newest" in first[max(item.step for item in saved)] or not asked.delete


@given(checkpoints(), rules)
def test_pruning_at_every_save_is_pruning_at_the_end(saved: list[Saved], asked: Rules) -> None:
    """What was deleted in between would not have been kept later."""
    left: list[Saved] = []
    for item in sorted(saved, key=lambda item: item.step):
        left = [other for other in [*left, item] if other.step in kept([*left, item], asked)]
    assert {item.step for item in left} == set(kept(saved, asked))


def test_reasons_are_named() -> None:
    """As `cptron checkpoint list` shows them."""
    saved = [Saved(step, 100 * step, {METRIC: abs(step - 3.0)}) for step in range(1, 7)]
    saved[1] = Saved(2, 200, {}, ("chosen by hand",))
    asked = Rules(
        keep_last=2,
        keep_every_tokens=250,
        keep_best=1,
        best_metric=METRIC,
        milestones=(Milestone("half", 400),),
    )
    assert kept(saved, asked) == {
        2: ["marked chosen by hand"],
        3: ["every 250 tokens", f"best 1 by {METRIC}"],
        4: ["milestone half"],
        5: ["last 2", "every 250 tokens"],
        6: ["newest", "last 2"],
    }
    assert kept(saved, Rules())[1] == ["nothing is deleted"]
    assert kept(saved, Rules(milestones=(Milestone("half", 400),)))[4] == ["milestone half"]
    assert kept([], asked) == {}
