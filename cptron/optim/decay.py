"""How a rate falls from one value to another: the forms of a decay and of a cool-down.

Place in the flow: `schedule` puts them where they belong. Imports no torch. Invariant: every form begins at the first
value, never rises, and ends at exactly the second; between two equal values it is that value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

INVERSE_SQRT_ALPHA = 10.0
"""How much of an inverse square root a cool-down shows: it falls as 1 / sqrt(1 + alpha * r)."""


def decayed(high: float, low: float, form: str, r: float) -> float:
    """The rate at the part `r` (from 0; beyond 1 counts as 1) of a decay from `high` to `low`.

    `form` is one of `optim.decay_form`, or `inverse_sqrt`, which only a cool-down has.
    """
    if r >= 1.0:
        return low
    if form == "geometric":
        return high if high == low else float(high * (low / high) ** r)
    return low + (high - low) * LEFT[form](r)


def _inverse_sqrt(r: float) -> float:
    """1 / sqrt(1 + alpha r), moved and stretched so that it goes from 1 to 0."""
    fallen = 1.0 - 1.0 / math.sqrt(1.0 + INVERSE_SQRT_ALPHA * r)
    return 1.0 - fallen / (1.0 - 1.0 / math.sqrt(1.0 + INVERSE_SQRT_ALPHA))


LEFT: dict[str, Callable[[float], float]] = {
    "linear": lambda r: 1.0 - r,
    "cosine": lambda r: 0.5 * (1.0 + math.cos(math.pi * r)),
    "exponential": lambda r: 2.0 * 0.5**r - 1.0,
    "minus_sqrt": lambda r: 1.0 - math.sqrt(r),
    "inverse_sqrt": _inverse_sqrt,
}
"""Form -> the part of the way down that is left at `r`. The first four are Megatron's WSD decay styles."""
