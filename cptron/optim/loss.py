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
    """Summed loss (nats, differentiable), counted tokens, and `[K, 3]` float64 sums of loss, tokens and divergence from
    a teacher by source. `losses` were weighted with `mask_BS`."""
    masked_BS = losses.loss * mask_BS
    apart_BS = torch.zeros_like(masked_BS) if losses.divergence is None else losses.divergence * mask_BS
    columns = [part_BS.detach().double().sum(1) for part_BS in (masked_BS, mask_BS, apart_BS)]
    by_source_K3 = torch.zeros(num_sources, 3, dtype=torch.float64, device=mask_BS.device)
    by_source_K3.index_add_(0, source_B, torch.stack(columns, dim=1))
    return losses.weighted_sum, mask_BS.sum().int(), by_source_K3
