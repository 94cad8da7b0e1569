"""One optimizer step.

Place in the flow: the loop hands in this rank's micro-batches of the global batch. Invariant: a step that
fails leaves weights and moments as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cptron.config.schema import OptimConfig
from cptron.data.batch import MicroBatch
from cptron.errors import TrainingError
from cptron.optim.optimizer import apply_gradients, gradient_norm, set_rates
from cptron.regularise.regulariser import NOTHING, Regulariser
from cptron.runtime.pipeline import LossSums, run_schedule, whole_groups

Accept = Callable[[float, float], bool]
"""Says of a loss (nats per token) and a global gradient norm whether the weights may follow; collective."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step reports."""

    sums: LossSums
    grad_norm: float
    lr: float
    updated: bool
    """False where the batch was not accepted: no weight and no moment has changed."""


def require_finite(loss_nats_per_token: float, grad_norm: float) -> bool:
    """Accepts everything that is finite. Raises `TrainingError` on a loss that is not; of a gradient
    `apply_gradients` says more."""
    if not math.isfinite(loss_nats_per_token):
        raise TrainingError(
            f"training loss is {loss_nats_per_token}; no weight was changed. Lower optim.lr or look at the data"
        )
    return True


def train_step(
    chunks: Sequence[Any],
    optimizer: Any,
    batches: Sequence[MicroBatch],
    *,
    lr: float,
    optim: OptimConfig,
    num_sources: int,
    device: torch.device,
    accept: Accept = require_finite,
    before_update: Callable[[], None] = lambda: None,
    regulariser: Regulariser = NOTHING,
) -> StepResult:
    """Forward, backward, reduce; then, if `accept` says so, clip and update. `before_update` is called when weights are
    about to change. `regulariser` may change gradients that are ready, and the masters inside the optimizer's step.

    Raises `TrainingError` on every rank, with the weights unchanged, when an accepted gradient norm is not finite.
    """

    def run(part: Sequence[MicroBatch]) -> LossSums:
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        part = whole_groups(part, len(chunks))
        return run_schedule(chunks, part, num_sources, device, forward_only=False)

    sums = regulariser.forward_backward(run, optimizer, batches)
    grad_norm = gradient_norm(optimizer, regulariser.before_update)
    accepted = accept(sums.loss_nats_per_token, grad_norm)
    if accepted:
        before_update()
        set_rates(optimizer, lr, optim)
        apply_gradients(optimizer, optim.clip_grad_norm, grad_norm)
    return StepResult(sums, grad_norm, lr, accepted)
