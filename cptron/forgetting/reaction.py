"""What the monitor has done to a run so far, and what that makes of rate and shares.

Place in the flow: part of the run's state; the loop multiplies the schedule by `lr_factor`, the data is drawn under
`raised_shares`. Imports no torch. Invariant: a pure function of the state and the configuration; replay is never below
its configured share, the rate never below `LR_FLOOR` of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

REPLAY_CAP = 0.5
"""Of all tokens; where the configuration asks for more replay, that."""
LR_FLOOR = 1 / 16
_MOST_FACTOR = 2.0**30
"""So many doublings make no sense; and whole numbers below it are floats, exactly."""


@dataclass(frozen=True, slots=True)
class Reaction:
    """All that is in force."""

    lr_factor: float = 1.0
    """The schedule's rate is multiplied by it."""
    replay_factor: float = 1.0
    """The shares of replay sources are multiplied by it, up to the cap."""
    attempt: int = 0
    """Rollbacks of the monitor until now."""
    actions: int = 0
    """Actions until now, of any kind."""
    stopped: bool = False
    """The monitor has ended the run."""

    @classmethod
    def from_dict(cls, saved: Any) -> Self:
        """What `to_dict` returned. Raises ValueError on anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(saved, Mapping) or set(saved) != names:
            raise ValueError(f"must hold {', '.join(sorted(names))}")
        factors = (saved["lr_factor"], saved["replay_factor"])
        counts = (saved["attempt"], saved["actions"])
        if not all(type(factor) in (int, float) and 0 < factor < _MOST_FACTOR for factor in factors):
            raise ValueError("must hold two factors")
        if (
            not all(type(count) is int and 0 <= count < 2**62 for count in counts)
            or type(saved["stopped"]) is not bool
        ):
            raise ValueError("must hold two counts and a truth value")
        return cls(float(factors[0]), float(factors[1]), *counts, saved["stopped"])

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def raised_shares(shares: Sequence[float], is_replay: Sequence[bool], factor: float) -> tuple[float, ...]:
    """Shares of the tokens, adding up to 1, with those of replay sources times `factor`; the others fill up in their
    own proportion. Unchanged, if only in sum 1, where all sources are replay or none is."""
    total = math.fsum(shares)
    replay = math.fsum(share for share, old in zip(shares, is_replay, strict=True) if old) / total
    if factor == 1 or not 0 < replay < 1:
        return tuple(share / total for share in shares)
    raised = max(replay, min(REPLAY_CAP, replay * factor))
    scale = {True: raised / replay, False: (1 - raised) / (1 - replay)}
    return tuple(share / total * scale[old] for share, old in zip(shares, is_replay, strict=True))


def can_raise(shares: Sequence[float], is_replay: Sequence[bool], factor: float) -> bool:
    """Whether twice the factor makes a difference."""
    return raised_shares(shares, is_replay, 2 * factor) != raised_shares(shares, is_replay, factor)
