"""Shares that keep their floors, whatever was proposed.

Place in the flow: `stream` sends every blend through here, also those of stages, of online mixers and of the monitor.
Invariant: the result sums to 1, no source has less than its floor, and the sources of role `replay` together have at
least theirs; shares that keep the floors come back as they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cptron.errors import ConfigError

SLACK = 1e-12
"""Sums of shares are rounded; what lies within it of a floor keeps it."""


@dataclass(frozen=True, slots=True)
class Floors:
    """What no blend goes below."""

    replay: frozenset[str] = frozenset()
    """Sources of role `replay`."""
    replay_floor: float = 0.0
    """Share of the tokens that they have together, at least."""
    min_share: Mapping[str, float] = field(default_factory=dict)
    """Share of single sources, where they are drawn at all."""


def is_usable(proposed: Collection[float]) -> bool:
    """Whether numbers can be made shares: finite, none below 0, and not all 0."""
    return all(0 <= value < math.inf for value in proposed) and 0 < sum(proposed) < math.inf


def floored(proposed: Mapping[str, float], floors: Floors) -> dict[str, float]:
    """Shares of the sources of `proposed`, which `is_usable`: as near to the proportions asked for as the floors let.

    Raises ConfigError where no shares of these sources keep the floors.
    """
    assert is_usable(proposed.values()), proposed
    total = math.fsum(proposed.values())
    shares = {name: value / total for name, value in proposed.items()}
    least = {name: floors.min_share.get(name, 0.0) for name in shares}
    replay = [name for name in shares if name in floors.replay]
    new = [name for name in shares if name not in floors.replay]
    of_replay = math.fsum(shares[name] for name in replay)
    if of_replay >= floors.replay_floor - SLACK and all(shares[n] >= least[n] - SLACK for n in shares):
        return shares
    low = max(floors.replay_floor, math.fsum(least[name] for name in replay))
    high = 1.0 - math.fsum(least[name] for name in new) if new else 1.0
    if low > high + SLACK or (low > 0 and not replay):
        raise ConfigError(
            f"sources {sorted(shares)} cannot keep data.replay_floor={floors.replay_floor:g} and their min_share; "
            "lower them, or add a source of role replay"
        )
    of_replay = min(max(of_replay, low), high) if new else 1.0
    return _filled(replay, shares, least, of_replay) | _filled(new, shares, least, 1.0 - of_replay)


def _filled(
    names: Sequence[str], shares: Mapping[str, float], least: Mapping[str, float], total: float
) -> dict[str, float]:
    """`total` over `names` in proportion to their shares, but none below its least."""
    held: dict[str, float] = {}
    while free := [name for name in names if name not in held]:
        room, asked = total - math.fsum(held.values()), math.fsum(shares[name] for name in free)
        given = {name: room * (shares[name] / asked) if asked else room / len(free) for name in free}
        below = {name: least[name] for name in free if given[name] < least[name]}
        if not below:
            return held | given
        held |= below
    return held
