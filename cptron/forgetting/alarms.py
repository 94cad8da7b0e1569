"""Two alarms beside forgetting: overfitting to the new data, and repetition that teaches nothing any more.

Place in the flow: sums of training since the last evaluation, and this one -> here -> the monitor, which says so.
Invariant: pure functions of the state and the measurement, as `policy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class GapState:
    """The gap between loss on new validation sets and in training on new sources."""

    reference_nats: float | None = None
    """The lowest since the grace window."""
    valid_nats: float | None = None
    """Validation loss at the last evaluation."""
    above: int = 0
    """Evaluations in a row beyond the limit since then."""
    alarmed: bool = False


@dataclass(frozen=True, slots=True)
class RepetitionState:
    """What is known of one source."""

    train_nats: float | None = None
    """Its loss in training between the last two evaluations, in nats per token."""
    valid_nats: float | None = None
    """The loss of the validation set of its name at the last evaluation."""
    in_a_row: int = 0
    """Evaluations in a row at which the first had fallen and the second had not."""
    told_epochs: bool = False
    """That it was seen so often has been said."""


def judge_gap(
    limit_nats: float, patience: int, state: GapState, train_nats: float | None, valid_nats: float
) -> tuple[GapState, float | None]:
    """The state after an evaluation beyond the grace window, and by how much the gap has grown if that is an alarm.

    `train_nats` is the mean since the last evaluation; therefore it is compared with the mean of both validation
    losses: while losses fall, the last one alone is always below it. An alarm is over below half of the limit."""
    before = state.valid_nats
    state = replace(state, valid_nats=valid_nats)
    if train_nats is None or before is None:
        return state, None
    gap = (before + valid_nats) / 2 - train_nats
    lowest = gap if state.reference_nats is None else min(gap, state.reference_nats)
    state, grown = replace(state, reference_nats=lowest), gap - lowest
    if not grown > limit_nats:
        return replace(state, above=0, alarmed=state.alarmed and grown >= limit_nats / 2), None
    is_alarm = state.above + 1 >= patience and not state.alarmed
    return replace(
        state, above=state.above + 1, alarmed=state.alarmed or is_alarm
    ), grown if is_alarm else None


def judge_repetition(
    limit_epochs: float,
    patience: int,
    state: RepetitionState,
    epochs: float,
    train_nats: float | None,
    valid_nats: float | None,
) -> tuple[RepetitionState, str]:
    """The state after an evaluation, and what there is to say: `epochs`, `useless` or nothing. `train_nats` is None
    where nothing was drawn since, `valid_nats` where there is no validation set of the source's name."""
    known = (state.train_nats, train_nats, state.valid_nats, valid_nats)
    in_a_row = 0
    if epochs > 1 and None not in known:
        learned = train_nats < state.train_nats  # type: ignore[operator]  # none is None
        useless = learned and valid_nats >= state.valid_nats  # type: ignore[operator]
        in_a_row = state.in_a_row + 1 if useless else 0
    told = state.told_epochs or epochs >= limit_epochs
    now = RepetitionState(state.train_nats if train_nats is None else train_nats, valid_nats, in_a_row, told)
    if told and not state.told_epochs:
        return now, "epochs"
    return now, "useless" if in_a_row == patience else ""
