"""Whether the ranks, together, stop after a step: by a signal to any of them, or since time runs out.

Place in the flow: the loop asks once a step, between the gradient norm and the update. Invariant: every rank gets the
same answer.
"""

from __future__ import annotations

import torch

from cptron.runtime.agreement import Agreed, agree_on_step
from cptron.runtime.deadline import Deadline, Limit
from cptron.runtime.signals import StopRequest


class Stop:
    """What can stop this rank's run, from the first step until the process is about to exit."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._request = StopRequest()
        self.reason = ""
        """`stopped by ...` where the ranks have to stop after the step at hand."""

    def listen(self) -> None:
        """From now on a signal is a request to stop. Before, when nothing is there to be saved, it ends the process."""
        self._request.listen()

    def agree(
        self, loss: float, grad_norm: float, *, evaluation_is_due: bool, device: torch.device
    ) -> tuple[float, float]:
        """Tell the other ranks what came to this one, and hear `reason`; of the clocks only that of rank 0 counts. Rank
        0's loss and gradient norm, too. Collective."""
        limit = self._deadline.near(evaluation_is_due=evaluation_is_due)
        agreed = agree_on_step(loss, grad_norm, limit, self._request.received, device)
        self.reason = _reason(agreed)
        return agreed.loss, agreed.grad_norm

    def close(self) -> None:
        """Let signals end the process again."""
        self._request.close()


def _reason(agreed: Agreed) -> str:
    if agreed.signals:
        return f"stopped by {max(agreed.signals).name}"
    limit = Limit(agreed.limit)
    return f"stopped by {limit.reason}" if limit else ""
