"""When forgetting is an alarm, and when it is over.

Place in the flow: intervals of `bootstrap` -> here -> `monitor`, which acts. Invariant: a pure function of the rules,
the state and the measurement; so a resumed run, or a replay of its journal, decides alike.

Shortly after a change of data the loss on old data overshoots and comes back (the stability gap), so nothing is decided
within the grace window. After it, `patience` evaluations in a row whose lower bound lies above epsilon are an alarm;
it is over when the estimate has fallen below half of epsilon, and not before, so that a loss near epsilon does not
switch it on and off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from cptron.forgetting.bootstrap import Interval

Finding = Literal["grace", "quiet", "above", "alarm", "hold", "clear"]
"""`grace`: too early. `above`: beyond epsilon, not yet `patience` times in a row. `alarm`: act now. `hold`: the alarm
before goes on. `clear`: it is over."""
CLEARS_AT = 0.5
"""Of epsilon."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as forgetting."""

    epsilon_nats: float
    """Largest change of the loss on old data that is no alarm, in nats per token."""
    patience: int
    """Evaluations in a row beyond it until there is an alarm."""
    grace_tokens: int
    """Trained tokens since the run began before which nothing is decided."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the evaluations before have come to."""

    above: int = 0
    """Evaluations in a row beyond epsilon since the last alarm."""
    alarmed: bool = False
    alarms: int = 0
    """So many times it was time to act."""

    @classmethod
    def from_dict(cls, saved: Any) -> Self:
        """What `to_dict` returned. Raises ValueError on anything else."""
        if not isinstance(saved, Mapping) or set(saved) != {"above", "alarmed", "alarms"}:
            raise ValueError("must hold above, alarmed and alarms")
        counts = (saved["above"], saved["alarms"])
        if (
            not all(type(count) is int and count >= 0 for count in counts)
            or type(saved["alarmed"]) is not bool
        ):
            raise ValueError("must hold two counts and a truth value")
        return cls(saved["above"], saved["alarmed"], saved["alarms"])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def judge(rules: Rules, state: PolicyState, change: Interval, tokens: int) -> tuple[PolicyState, Finding]:
    """What an evaluation means, `tokens` trained tokens after the run began, and the state after it.

    An alarm that goes on is one again after `patience` further evaluations beyond epsilon: what was done about it was
    not enough.
    """
    if tokens < rules.grace_tokens:
        return state, "grace"
    if state.alarmed and change.estimate < CLEARS_AT * rules.epsilon_nats:
        return replace(state, above=0, alarmed=False), "clear"
    if not change.low > rules.epsilon_nats or math.isnan(change.estimate):
        return replace(state, above=0), "hold" if state.alarmed else "quiet"
    above = state.above + 1
    if above < rules.patience:
        return replace(state, above=above), "hold" if state.alarmed else "above"
    return PolicyState(0, alarmed=True, alarms=state.alarms + 1), "alarm"
