"""What one process computes with `transformers` and plain torch on the batches of `composition_calls`."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from composition_calls import Batch

from cptron.config.schema import OptimConfig


def row_loss(model: torch.nn.Module, batch: Batch, row: int, documents: bool, reset: bool) -> torch.Tensor:
    """Summed loss of one row: forward passes that see one document each."""
    ids_W = batch.documents_GW[row]
    width = len(ids_W)
    cuts = [0, *(np.flatnonzero(np.diff(ids_W)) + 1).tolist(), width]
    begins_W = np.repeat(cuts[:-1], np.diff(cuts))
    positions_W = np.arange(width) - (begins_W if reset else 0)
    total = torch.zeros(())
    for start, stop in itertools.pairwise(cuts) if documents else [(0, width)]:
        part = slice(start, stop)
        logits = model(
            torch.from_numpy(batch.tokens_GW[row : row + 1, part]),
            position_ids=torch.from_numpy(positions_W[None, part]),
        ).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(batch.labels_GW[row, part]), reduction="none"
        )
        total = total + (loss * torch.from_numpy(batch.mask_GW[row, part])).sum()
    return total


def adamw_of(model: torch.nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """torch's AdamW; vectors do not decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)


def train(
    model: torch.nn.Module, batches: list[Batch], optim: OptimConfig, *, documents: bool, reset: bool
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of a step on each batch."""
    adamw = adamw_of(model, optim)
    history = []
    for batch in batches:
        adamw.zero_grad()
        losses = [row_loss(model, batch, row, documents, reset) for row in range(len(batch.tokens_GW))]
        loss = torch.stack(losses).sum() / float(batch.mask_GW.sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad_norm)
        adamw.step()
        history.append((float(loss.detach()), float(norm)))
    return history
