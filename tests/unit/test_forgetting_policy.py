"""The policy on made-up curves: no alarm too early, none for noise, no flapping, and the same again from any state."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.policy import Finding, PolicyState, Rules, judge

RULES = Rules(epsilon_nats=0.05, patience=2, grace_tokens=100)


def findings(curve: Sequence[float], half: float = 0.01, state: PolicyState | None = None) -> list[Finding]:
    """Of a curve of changes, evaluated every 50 tokens, with intervals of this half width."""
    state, found = state or PolicyState(), []
    for number, change in enumerate(curve):
        state, finding = judge(RULES, state, Interval(change, change - half, change + half), 50 * number)
        found.append(finding)
    return found


def test_the_stability_gap_is_no_alarm() -> None:
    """An early overshoot within the grace window."""
    assert findings([0.3, 0.4, 0.04, 0.03, 0.02]) == ["grace", "grace", "quiet", "quiet", "quiet"]


def test_lasting_forgetting_is_one_alarm_after_patience() -> None:
    assert findings([0, 0, 0.1, 0.2, 0.04, 0.03, 0.02]) == [
        "grace",
        "grace",
        "above",
        "alarm",
        "hold",
        "hold",
        "clear",
    ]


def test_one_bad_evaluation_is_none() -> None:
    assert findings([0, 0, 0.1, 0.02, 0.1, 0.02]) == ["grace", "grace", "above", "quiet", "above", "quiet"]


def test_the_lower_bound_must_lie_beyond() -> None:
    """An estimate beyond epsilon that is not sure of it."""
    assert "alarm" not in findings([0, 0, *[0.08] * 10], half=0.04)


def test_what_goes_on_is_an_alarm_again() -> None:
    """So that what was done can be done again."""
    found = findings([0, 0, *[0.2] * 7])
    assert found[2:] == ["above", "alarm", "hold", "alarm", "hold", "alarm", "hold"]


def test_no_flapping_near_epsilon() -> None:
    """A curve that crosses epsilon at every evaluation, and one that crosses it every other: at most one alarm."""
    every = findings([0, 0, *[0.065, 0.045] * 20])
    pairs = findings([0, 0, *[0.065, 0.065, 0.045, 0.045] * 20])
    assert every.count("alarm") == 0
    assert pairs.count("clear") == 0


@given(st.lists(st.floats(-0.2, 0.3), min_size=1, max_size=30), st.integers(0, 29))
def test_any_cut_gives_the_same(curve: list[float], cut: int) -> None:
    """The state goes through JSON at any evaluation, as in a resume, and nothing of what follows changes; alarms and
    clears take turns but for repeated alarms, and each alarm has `patience` evaluations beyond epsilon before it."""
    whole = findings(curve)
    state = PolicyState()
    for number, change in enumerate(curve):
        if number == cut:
            state = PolicyState.from_dict(json.loads(json.dumps(state.to_dict())))
        state, finding = judge(RULES, state, Interval(change, change - 0.01, change + 0.01), 50 * number)
        assert finding == whole[number]
        if finding == "alarm":
            assert min(curve[number - 1], change) - 0.01 > RULES.epsilon_nats
        if finding == "clear":
            assert "alarm" in whole[:number] and change < RULES.epsilon_nats / 2
        assert state.alarmed == (finding in ("alarm", "hold") or (finding == "grace" and state.alarmed))


@pytest.mark.parametrize(
    "saved",
    [None, [], {}, {"above": -1, "alarmed": False, "alarms": 0}, {"above": 0, "alarmed": 1, "alarms": 0}],
)
def test_damaged_states_are_refused(saved: object) -> None:
    with pytest.raises(ValueError):
        PolicyState.from_dict(saved)
