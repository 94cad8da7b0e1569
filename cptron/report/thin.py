"""Many rows made few, honestly: each drawn point says how many steps it stands for, their mean and their extremes.

Place in the flow: `steplog` -> here -> `spec`. Invariant: the lowest and the highest value of every column are kept,
no bucket reaches over a gap of the log, and rows that are few enough are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cptron.report.places import Places, numbers
from cptron.report.spec import Grid, Values
from cptron.report.steplog import Numbers, StepLog

PAGE_VALUES = 240_000
"""About as many numbers are in a page; at eight bytes of text each that is two megabytes."""
LEAST_BUCKETS, MOST_BUCKETS = 60, 2000


def buckets_for(num_series: int) -> int:
    """Points of one series, so that the page stays small and a curve keeps its shape. Extremes count as well."""
    return int(np.clip(PAGE_VALUES / (3 * max(1, num_series)), LEAST_BUCKETS, MOST_BUCKETS))


@dataclass(frozen=True, slots=True)
class Thinned:
    """A log in buckets."""

    log: StepLog
    starts: npt.NDArray[np.int64]
    """First row of each bucket."""
    grid: Grid

    @property
    def is_whole(self) -> bool:
        """Every row is a bucket of its own."""
        return len(self.starts) == len(self.log)

    def means(self, name: str) -> Values:
        """Mean and extremes of what is finite in each bucket; exact where a bucket is one row."""
        return self.means_of(self.log.column(name), self._bad(name))

    def means_of(self, column: Numbers, bad: Mapping[int, str] | None = None) -> Values:
        """The same of a column that is made of others."""
        bad = bad or {}
        if self.is_whole:
            return Values(numbers(column, None), bad=bad)
        there = np.isfinite(column)
        count = np.add.reduceat(there, self.starts, dtype=np.int64)
        sums = np.add.reduceat(np.where(there, column, 0.0), self.starts)
        mean = np.divide(sums, count, out=np.full(len(sums), np.nan), where=count > 0)
        low = np.fmin.reduceat(column, self.starts)
        high = np.fmax.reduceat(column, self.starts)
        return Values(numbers(mean, 7), numbers(low, 7), numbers(high, 7), bad)

    def samples(self, name: str) -> Values:
        """The value at the step that stands for a bucket; for what only rises, or seldom changes."""
        column = self.log.column(name)
        return Values(numbers(column[_middle(self.starts, len(column))], None if self.is_whole else 9))

    def _bad(self, name: str) -> dict[int, str]:
        found: dict[int, list[str]] = {}
        for row, text in sorted(self.log.texts.get(name, {}).items()):
            found.setdefault(int(np.searchsorted(self.starts, row, side="right")) - 1, []).append(text)
        return {place: _counted(texts) for place, texts in found.items()}


def thin(log: StepLog, places: Places, buckets: int, gaps: Sequence[tuple[int, int]] = ()) -> Thinned:
    """About `buckets` buckets, none of which reaches over a gap."""
    rows, steps = len(log), log.steps
    after_gaps = np.searchsorted(steps, [after for _, after in gaps]) if gaps else np.zeros(0, dtype=np.int64)
    size = max(1, -(-rows // buckets))
    starts = np.unique(np.concatenate([np.arange(0, rows, size), after_gaps]).astype(np.int64))
    middle = _middle(starts, rows)
    at = steps[middle]
    grid = Grid(
        step=numbers(at, None),
        tokens=numbers(np.round(places.tokens(at)), None),
        hours=numbers(places.hours(at), 7),
        count=np.diff(np.append(starts, rows)).tolist() if size > 1 else None,
        breaks=np.searchsorted(starts, after_gaps).tolist(),
    )
    return Thinned(log, starts, grid)


def _middle(starts: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    """The row that stands for each bucket."""
    stops = np.append(starts[1:], rows)
    middle: npt.NDArray[np.int64] = (starts + stops - 1) // 2
    return middle


def _counted(texts: list[str]) -> str:
    kinds = {text: texts.count(text) for text in texts}
    return ", ".join(text if count == 1 else f"{text} ({count} steps)" for text, count in kinds.items())
