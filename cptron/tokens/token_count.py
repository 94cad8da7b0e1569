"""Numbers of tokens as people write them.

Place in the flow: under the options of commands. Invariant: what is returned is a whole number from 1.
"""

from __future__ import annotations

import math

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def token_count(text: str) -> int:
    """`20_000_000`, `2e9`, `500M` or `2.5B`. Raises ValueError, which says how to write it."""
    unit = UNITS.get(text[-1:].upper(), 1)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = 0.0
    if not 1 <= number < math.inf:
        raise ValueError(f"{text!r} must be a number of tokens from 1; write e.g. 500M or 2e9")
    return round(number)
