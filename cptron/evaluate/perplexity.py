"""Loss of the model on a validation set, in nats per token.

Place in the flow: before the first update, during and after training, and by `cptron eval`. Invariant:
every predicted token of the set counts exactly once, whatever the layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from cptron.data.valid import ValidSet
from cptron.errors import TrainingError
from cptron.runtime.pipeline import LossSums, evaluate

BATCHES_AT_ONCE = 32
"""Micro-batches handed to the schedule together: enough to keep a pipeline full, few enough for any
memory."""


def evaluate_set(chunks: Sequence[Any], valid_set: ValidSet, device: torch.device) -> LossSums:
    """Sum of losses and tokens over the whole set; collective."""
    total: LossSums | None = None
    batches = iter(valid_set)
    while part := list(itertools.islice(batches, BATCHES_AT_ONCE)):
        sums = evaluate(chunks, part, device)
        total = sums if total is None else total + sums
    assert total is not None, "an empty validation set is refused when it is opened"
    if total.tokens != valid_set.num_predicted_tokens:
        raise TrainingError(
            f"validation set {valid_set.name} counted {total.tokens} tokens, not "
            f"{valid_set.num_predicted_tokens}; a rank lost part of the set"
        )
    return total
