"""Starts and ends of jobs as their scripts note them, for sites that keep no accounts.

Place in the flow: the templates append to it, `status` reads it. Invariant: lines are whole or passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cptron.launch.record import HISTORY, JobRecord

_LINE = re.compile(r"\S+ (?P<job>\d+)(?:_\d*)? (?:(?P<started>started)|ended with (?P<code>\d+))")


@dataclass(frozen=True, slots=True)
class Ends:
    """What a job's script has noted."""

    starts: int
    last_code: int | None
    """Exit code of the last start; None while it lasts, and when its script was killed."""


def ends_of(record: JobRecord) -> Ends:
    """Of a job; of an array, over all of its tasks."""
    try:
        text = (Path(record.jobs) / HISTORY).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Ends(0, None)
    starts, code = 0, None
    for match in map(_LINE.match, text.splitlines()):
        if match is None or match["job"] != record.job_id:
            continue
        starts += bool(match["started"])
        code = int(match["code"]) if match["code"] else None
    return Ends(starts, code)
