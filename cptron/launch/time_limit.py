"""Time limits as people and SLURM write them.

Place in the flow: read by `submit`. Invariant: what is returned is SLURM's own form of the same length.
"""

from __future__ import annotations

import re

from cptron.errors import ConfigError

_SLURM = re.compile(
    r"(?:(?P<days>\d{1,4})-)?(?P<first>\d{1,6})(?::(?P<second>\d{1,2}))?(?::(?P<third>\d{1,2}))?"
)
_WORDS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?")


def slurm_time(text: str, key: str) -> str:
    """`text` as days-hours:minutes:seconds; `key` says in errors where it is from. Raises `ConfigError`.

    Accepts SLURM's forms (minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
    days-hours:minutes:seconds) and words as 2d, 36h, 1h30m.
    """
    seconds = slurm_seconds(text.strip())
    if not seconds:
        raise ConfigError(
            f"{key} {text!r} is no time limit; write hours:minutes:seconds as 24:00:00, or days-hours as 2-12, or 36h"
        )
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def slurm_seconds(text: str) -> int:
    """How long that is; 0 where it cannot be read."""
    if match := _WORDS.fullmatch(text):
        days, hours, minutes = (int(part or 0) for part in match.groups())
        return days * 86400 + hours * 3600 + minutes * 60
    match = _SLURM.fullmatch(text)
    if match is None:
        return 0
    first, second, third = (int(part or 0) for part in match.group("first", "second", "third"))
    if match["days"] is not None:
        return int(match["days"]) * 86400 + first * 3600 + second * 60 + third
    if match["third"] is not None:
        return first * 3600 + second * 60 + third
    return first * 60 + second
