"""Whether the ranks, together, stop after a step: by a signal to any of them, or since time runs out.

Place in the flow: the loop lets it report into the step's agreement and read the answer. Invariant: every rank reads
the same answer.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from cptron.runtime.agreement import Slot, StepStatus
from cptron.runtime.deadline import Deadline, Limit
from cptron.runtime.signals import StopRequest


class Stop:
    """What can stop this rank's run, from the first step until the process is about to exit."""

    def __init__(self, deadline: Deadline, *, is_main: bool) -> None:
        self._deadline = deadline
        self._is_main = is_main
        self._request = StopRequest()

    def listen(self) -> None:
        """From now on a signal is a request to stop. Before, when nothing is there to be saved, it ends the process."""
        self._request.listen()

    def report(self, status: StepStatus, *, evaluation_is_due: bool) -> None:
        """Tell the other ranks what came to this one. Of the clocks only that of rank 0 counts."""
        status.report(Slot.SIGNAL, self._request.received)
        if self._is_main:
            status.report(Slot.DEADLINE, self._deadline.near(evaluation_is_due=evaluation_is_due))

    @staticmethod
    def reason(agreed: Mapping[Slot, int]) -> str:
        """`stopped by ...` where the ranks have to stop, else an empty string."""
        if number := agreed[Slot.SIGNAL]:
            return f"stopped by {signal.Signals(number).name}"
        limit = Limit(agreed[Slot.DEADLINE])
        return f"stopped by {limit.reason}" if limit else ""

    def close(self) -> None:
        """Let signals end the process again."""
        self._request.close()
