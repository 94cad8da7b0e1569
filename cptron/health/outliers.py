"""Which ranks are slower than those that do the same work: pure, robust statistics.

Place in the flow: asked by `train.stragglers` with the last measurements of all ranks. Invariant: one hiccup, or a
noise that all ranks have, names nobody; where nobody else does the same work, the bar is higher.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 5
"""Measurements that are looked at together."""
PERSISTENT = 0.8
"""Part of them in which a slow rank is beyond the limit."""
NOISE = 5.0
"""Times the spread of the others (as a standard deviation, from their MAD) that a slow rank is beyond."""
LEAST_S = 0.005
"""A rank is not slow by less than this in a step: nobody could tell."""
ACROSS_STAGES = 1.5
"""Times the limit, where a rank has no peers and is compared with other stages by their share of the weights."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One rank beside its peers, over the window."""

    factor: float
    """Its own time over the median of its peers', the median of the window."""
    own_s: float
    """Of a step."""
    peers_s: float
    """Of a step."""
    is_slow: bool


def standings(
    own_s: Sequence[Sequence[float]], stages: Sequence[int], weights: Sequence[float], limit: float
) -> list[Standing]:
    """Each rank beside its peers. `own_s` has a row for each measurement, in it seconds by rank; `stages` and `weights`
    are the pipeline stage of each rank and how much it multiplies with. `limit` is a factor above 1."""
    return [_standing(own_s, rank, stages, weights, limit) for rank in range(len(stages))]


def _standing(
    own_s: Sequence[Sequence[float]], rank: int, stages: Sequence[int], weights: Sequence[float], limit: float
) -> Standing:
    others = [other for other in range(len(stages)) if other != rank]
    same = [other for other in others if stages[other] == stages[rank]]
    if not same:
        limit *= ACROSS_STAGES
    peers = same or others
    # what a peer's time would be, had it this rank's work
    scale = {other: 1.0 if same else weights[rank] / weights[other] for other in peers}
    expected = [statistics.median(row[other] * scale[other] for other in peers) for row in own_s]
    factors = [row[rank] / max(peer_s, 1e-9) for row, peer_s in zip(own_s, expected, strict=True)]
    factor, mine_s = statistics.median(factors), statistics.median(row[rank] for row in own_s)
    peers_s = statistics.median(expected)
    beyond = sum(each > limit for each in factors) >= PERSISTENT * len(factors)
    spread = _spread([statistics.median(row[other] * scale[other] for row in own_s) for other in peers])
    is_slow = beyond and factor > max(limit, 1 + NOISE * spread) and mine_s - peers_s > LEAST_S
    return Standing(factor, mine_s, peers_s, is_slow)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over the median, estimated from the median of the distances to it; 0 for one value."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values) / max(middle, 1e-9)
