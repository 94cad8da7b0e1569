"""Micro-batches through megatron-core's pipeline schedules, forward only or with gradients.

Place in the flow: the training step and every evaluation go through `run_schedule`. Adapter for
`megatron.core.pipeline_parallel`. Invariant: the sums returned are the same numbers on every rank.

Shapes: B micro-batch, S sequence, K sources.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from cptron.data.batch import MicroBatch
from cptron.optim.loss import masked_sums


@dataclass(frozen=True, slots=True)
class LossSums:
    """Summed loss and counted tokens of a set of micro-batches over all ranks, by source."""

    loss_nats_by_source: np.ndarray
    tokens_by_source: np.ndarray

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.loss_nats_by_source + other.loss_nats_by_source,
            self.tokens_by_source + other.tokens_by_source,
        )

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return int(self.tokens_by_source.sum())

    @property
    def loss_nats_per_token(self) -> float:
        """Mean over all predicted tokens."""
        return float(self.loss_nats_by_source.sum() / max(1, self.tokens))


def run_schedule(
    model: Any, batches: Sequence[MicroBatch], num_sources: int, device: torch.device, *, forward_only: bool
) -> LossSums:
    """Run the pipeline over this rank's micro-batches (at least one, the same number on every rank)."""
    batch_size, seq_length = batches[0].tokens_BS.shape
    outputs = get_forward_backward_func()(
        forward_step_func=functools.partial(_forward, num_sources=num_sources, device=device),
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=seq_length,
        micro_batch_size=batch_size,
        forward_only=forward_only,
    )
    sums_K2 = torch.zeros(num_sources, 2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        sums_K2 += torch.stack(outputs).sum(0)
    dist.all_reduce(sums_K2)
    sums = sums_K2.cpu().numpy()
    return LossSums(sums[:, 0], sums[:, 1])


def _forward(batches: Iterator[MicroBatch], model: Any, num_sources: int, device: torch.device) -> Any:
    """megatron-core's forward step: output tensor of this stage and the loss to apply on the last one."""
    batch = next(batches)
    tokens_BS = torch.from_numpy(batch.tokens_BS).to(device, non_blocking=True)
    labels_BS = torch.from_numpy(batch.labels_BS).to(device, non_blocking=True)
    mask_BS = torch.from_numpy(batch.loss_mask_BS).to(device, non_blocking=True)
    if batch.on_first_tensor_rank:
        tokens_BS, labels_BS, mask_BS = _from_first_tensor_rank(tokens_BS, labels_BS, mask_BS)
    source_B = torch.from_numpy(batch.source_B).to(device, non_blocking=True)
    positions_BS = torch.arange(tokens_BS.size(1), device=device).expand_as(tokens_BS)
    output = model(tokens_BS, positions_BS, None, labels=labels_BS)
    return output, functools.partial(masked_sums, mask_BS=mask_BS, source_B=source_B, num_sources=num_sources)


def _from_first_tensor_rank(
    tokens_BS: torch.Tensor, labels_BS: torch.Tensor, mask_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What tensor parallel rank 0 read, on all ranks of its group, by one broadcast; stages between the first
    and the last need none of it."""
    if not (parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()):
        return tokens_BS, labels_BS, mask_BS
    packed_3BS = torch.stack([tokens_BS, labels_BS, mask_BS.long()])
    group = parallel_state.get_tensor_model_parallel_group()
    dist.broadcast(packed_3BS, parallel_state.get_tensor_model_parallel_src_rank(), group=group)
    return packed_3BS[0], packed_3BS[1], packed_3BS[2].to(mask_BS.dtype)


def evaluate(model: Any, batches: Sequence[MicroBatch], device: torch.device) -> LossSums:
    """Forward only over this rank's micro-batches, without gradients and in evaluation mode."""
    model.eval()
    try:
        with torch.no_grad():
            return run_schedule(model, batches, 1, device, forward_only=True)
    finally:
        model.train()
