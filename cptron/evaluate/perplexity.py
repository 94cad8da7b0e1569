"""Loss of the model by the engine: on a set of windows of tokens, and on documents of a JSONL file by group.

Place in the flow: before the first update, during and after training, and by `cptron eval`. Invariant:
every predicted token of the set counts exactly once, whatever the layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cptron.data.windows import WindowSet
from cptron.errors import DataError, TrainingError
from cptron.evaluate.set_losses import SetLosses
from cptron.runtime.pipeline import evaluate

if TYPE_CHECKING:
    from cptron.evaluate.measure import Measure
    from cptron.evaluate.texts import TextSet

BATCHES_AT_ONCE = 32
"""Micro-batches handed to the schedule together: enough to keep a pipeline full, few enough for any
memory."""


def evaluate_set(chunks: Sequence[Any], valid_set: WindowSet, device: torch.device) -> SetLosses:
    """Losses of the whole set by window; collective."""
    nats: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    batches = iter(valid_set)
    while part := list(itertools.islice(batches, BATCHES_AT_ONCE)):
        # each window is a source of its own in the sums, which are over all ranks
        first, num_windows = valid_set.windows_of(len(nats) * BATCHES_AT_ONCE, len(part))
        numbered = [batch._replace(source_B=batch.source_B - first) for batch in part]
        sums = evaluate(chunks, numbered, device, num_windows)
        nats.append(sums.loss_nats_by_source)
        tokens.append(sums.tokens_by_source)
    tokens_W = np.concatenate(tokens).astype(np.int64)
    losses = SetLosses(np.concatenate(nats)[tokens_W > 0], tokens_W[tokens_W > 0])
    if losses.tokens != valid_set.num_predicted_tokens:
        raise TrainingError(
            f"validation set {valid_set.name} counted {losses.tokens} tokens, not "
            f"{valid_set.num_predicted_tokens}; a rank lost part of the set"
        )
    return losses


def evaluate_texts(model: Any, texts: TextSet, device: torch.device) -> Measure:
    """Losses of a JSONL file by group, with the whole model in this one process. Raises DataError."""
    model.eval()
    for batch, groups_BS in texts.batches():
        arrays = (batch.tokens_BS, batch.labels_BS, batch.loss_mask_BS)
        tokens_BS, labels_BS, mask_BS = (torch.from_numpy(array).to(device) for array in arrays)
        with torch.no_grad():
            losses_BS = model(tokens_BS, batch.documents_BS, labels_BS, mask_BS).loss.double().cpu().numpy()
        counted_BS = batch.loss_mask_BS > 0
        for number in np.unique(groups_BS[counted_BS]).tolist():
            of_group_BS = counted_BS & (groups_BS == number)
            texts.measure.add_losses(number, float(losses_BS[of_group_BS].sum()), int(of_group_BS.sum()))
    if not texts.measure.total.tokens:
        raise DataError(f"{texts.path} has no token to predict; give a file with text")
    return texts.measure
