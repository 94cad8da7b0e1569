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
from cptron.optim.nonfinite import describe_nonfinite
from cptron.optim.optimizer import apply_gradients, set_rates
from cptron.runtime.pipeline import LossSums, run_schedule


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step reports."""

    sums: LossSums
    grad_norm: float
    lr: float


def train_step(
    chunks: Sequence[Any],
    optimizer: Any,
    batches: Sequence[MicroBatch],
    *,
    lr: float,
    optim: OptimConfig,
    num_sources: int,
    device: torch.device,
    before_update: Callable[[], None] = lambda: None,
) -> StepResult:
    """Forward, backward, reduce, clip, update. `before_update` is called when weights are about to change.

    Raises `TrainingError` on every rank, with the weights unchanged, when the loss or the gradient norm is not finite.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    sums = run_schedule(chunks, batches, num_sources, device, forward_only=False)
    if not math.isfinite(sums.loss_nats_per_token):
        raise TrainingError(
            f"training loss is {sums.loss_nats_per_token}; no weight was changed. {describe_nonfinite(chunks)}. "
            "Lower optim.lr or look at the data"
        )
    before_update()
    set_rates(optimizer, lr, optim)
    grad_norm = apply_gradients(optimizer, optim.clip_grad_norm)
    return StepResult(sums, grad_norm, lr)
