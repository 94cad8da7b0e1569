"""From per-token losses to the sums that are trained on and reported.

Place in the flow: called by the schedule on the last pipeline stage, once a micro-batch. Invariant: sums
and counts, never means, leave a rank; so the loss does not depend on how a batch is cut over micro-batches
and ranks.

Shapes: B batch, S sequence, K sources.
"""

from __future__ import annotations

import torch

from cptron.model.vocab_loss import TokenLosses


def masked_sums(
    losses: TokenLosses, mask_BS: torch.Tensor, source_B: torch.Tensor, num_sources: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed loss (nats, differentiable), counted tokens, and `[K, 2]` float64 sums of loss and tokens by
    source. `losses` were weighted with `mask_BS`."""
    masked_BS = losses.loss * mask_BS
    per_sample_B2 = torch.stack([masked_BS.detach().double().sum(1), mask_BS.double().sum(1)], dim=1)
    by_source_K2 = torch.zeros(num_sources, 2, dtype=torch.float64, device=mask_BS.device)
    by_source_K2.index_add_(0, source_B, per_sample_B2)
    return losses.weighted_sum, mask_BS.sum().int(), by_source_K2
