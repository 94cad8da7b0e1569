"""The steps of a log as columns of numbers, of which a million fit in memory; a later start replaces what it repeats.

Place in the flow: `run_log` fills it, `thin` and `tables` read it. Imports no torch. Invariant: steps rise from row to
row; what is absent or not finite is NaN in a column, and what was not finite is kept as the text that the log has.
"""

from __future__ import annotations

import bisect
import math
from array import array

import numpy as np
import numpy.typing as npt

from cptron.report.sinks import Record

Numbers = npt.NDArray[np.float64]
NOT_FINITE = ("nan", "inf", "-inf")


class StepLog:
    """Rows are the records of kind `step`, in order."""

    def __init__(self) -> None:
        self._steps = array("q")
        self._columns: dict[str, array[float]] = {}
        self.texts: dict[str, dict[int, str]] = {}
        """Column -> row -> what was not finite."""

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> Numbers:
        """Optimizer steps done, of each row."""
        return np.array(self._steps, dtype=np.float64)

    @property
    def names(self) -> list[str]:
        """Columns, in the order in which they appeared."""
        return list(self._columns)

    def add(self, record: Record) -> None:
        """One more row; its step must be above the last. Raises OverflowError on a number that no float holds."""
        row = len(self._steps)
        self._steps.append(record["step"])
        for name, value in record.items():
            is_number = isinstance(value, float | int) and not isinstance(value, bool)
            if not is_number and not (isinstance(value, str) and value in NOT_FINITE):
                continue
            number = float(value)
            if not math.isfinite(number):
                self.texts.setdefault(name, {})[row] = repr(number)
                number = math.nan
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("d")
            if len(column) < row:
                column.extend([math.nan] * (row - len(column)))
            column.append(number)

    def cut(self, step: int) -> StepLog:
        """Take off the rows beyond `step`, and return them."""
        place = bisect.bisect_right(self._steps, step)
        left = StepLog()
        left._steps = self._steps[place:]
        del self._steps[place:]
        for name, column in self._columns.items():
            left._columns[name] = column[place:]
            del column[place:]
        for name, texts in self.texts.items():
            left.texts[name] = {row - place: text for row, text in texts.items() if row >= place}
            self.texts[name] = {row: text for row, text in texts.items() if row < place}
        return left

    def column(self, name: str) -> Numbers:
        """One value a row."""
        found = np.full(len(self), math.nan)
        column = self._columns.get(name)
        if column is not None:
            found[: len(column)] = column
        return found

    def finite(self, name: str) -> Numbers:
        """The values that there are."""
        column = self.column(name)
        return column[np.isfinite(column)]

    def last(self, name: str) -> float:
        """The last value that there is; NaN without one."""
        finite = self.finite(name)
        return float(finite[-1]) if len(finite) else math.nan
