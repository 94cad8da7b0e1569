"""Micro-batches through megatron-core's pipeline schedules, forward only or with gradients.

Place in the flow: the training step and every evaluation go through `run_schedule`. Adapter for
`megatron.core.pipeline_parallel`. Invariant: the sums returned are the same numbers on every rank.

Shapes: B micro-batch, S sequence, K sources.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from cptron.data.batch import MicroBatch
from cptron.model.flops import sum_of_squares
from cptron.model.segments import chunks_of
from cptron.optim.loss import masked_sums
from cptron.runtime.groups import is_first_stage, is_last_stage
from cptron.runtime.offloading import without_offloading


@dataclass(frozen=True, slots=True)
class LossSums:
    """Summed loss and counted tokens of a set of micro-batches over all ranks, by source."""

    loss_nats_by_source: np.ndarray
    tokens_by_source: np.ndarray
    places: int
    """Tokens the model went over, counted or not."""
    squared_lengths: int
    """Sum over documents of the square of their length: what attention costs."""
    windowed_squares: int
    """The same under the model's sliding window; the square itself where it has none."""
    divergence_nats_by_source: np.ndarray
    """Summed divergence from a teacher; 0 where none was asked."""

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.loss_nats_by_source + other.loss_nats_by_source,
            self.tokens_by_source + other.tokens_by_source,
            self.places + other.places,
            self.squared_lengths + other.squared_lengths,
            self.windowed_squares + other.windowed_squares,
            self.divergence_nats_by_source + other.divergence_nats_by_source,
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
    chunks: Sequence[Any],
    batches: Sequence[MicroBatch],
    num_sources: int,
    device: torch.device,
    *,
    forward_only: bool,
) -> LossSums:
    """Run the pipeline over this rank's micro-batches (at least one, the same number on every rank).

    `chunks` are the parts of the model on this stage. The rows of the micro-batches are whole; each context rank
    takes its part of them here.
    """
    batch_size, seq_length = batches[0].tokens_BS.shape
    model = unwrapped(chunks[0])
    document_mask = model.options.attention.document_mask
    outputs = get_forward_backward_func()(
        forward_step_func=functools.partial(_forward, num_sources=num_sources, device=device),
        data_iterator=[iter(batches) for _ in chunks] if len(chunks) > 1 else iter(batches),
        model=list(chunks),
        num_microbatches=len(batches),
        seq_length=seq_length,
        micro_batch_size=batch_size,
        forward_only=forward_only,
    )
    sums_K3 = torch.zeros(num_sources + 2, 3, dtype=torch.float64, device=device)
    if is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        sums_K3[:-2] += torch.stack(outputs).sum(0)
        if parallel_state.get_context_parallel_rank() == 0:
            lengths = _squares_of(batches, document_mask, model.arch.sliding_window)
            sums_K3[-2:, 0] += torch.tensor(lengths, device=device)
            sums_K3[-1, 1] += sum(batch.tokens_BS.size for batch in batches)
    dist.all_reduce(sums_K3)
    sums = sums_K3.cpu().numpy()
    squares, windowed, places = (int(value) for value in (sums[-2, 0], sums[-1, 0], sums[-1, 1]))
    return LossSums(sums[:-2, 0], sums[:-2, 1], places, squares, windowed, sums[:-2, 2])


def _squares_of(batches: Sequence[MicroBatch], document_mask: bool, window: int | None) -> tuple[int, int]:
    """Squared lengths of documents (or of whole rows, where attention crosses documents), without and with the
    window."""
    documents = [batch.documents_BS for batch in batches]
    if not document_mask:
        documents = [np.zeros_like(documents_BS) for documents_BS in documents]
    plain, windowed = (sum(sum_of_squares(each, limit) for each in documents) for limit in (None, window))
    return plain, windowed


def unwrapped(chunk: Any) -> Any:
    """A chunk without its data parallel wrapper."""
    return getattr(chunk, "module", chunk)


def _forward(batches: Iterator[MicroBatch], model: Any, num_sources: int, device: torch.device) -> Any:
    """megatron-core's forward step: output tensor of this chunk and the loss to apply on the last one."""
    batch = next(batches)
    tokens_BS = here(batch.tokens_BS, device)
    labels_BS = here(batch.labels_BS, device)
    mask_BS = here(batch.loss_mask_BS, device)
    if batch.on_first_tensor_rank:
        tokens_BS, labels_BS, mask_BS = _from_first_tensor_rank(tokens_BS, labels_BS, mask_BS)
    source_B = torch.from_numpy(batch.source_B).to(device, non_blocking=True)
    teacher = batch.teacher and batch.teacher.targets(mask_BS)
    weights_BS = mask_BS
    if batch.weight_B is not None:
        weights_BS = mask_BS * torch.from_numpy(batch.weight_B).to(device, non_blocking=True)[:, None]
    output = model(tokens_BS, batch.documents_BS, labels_BS, weights_BS, teacher)
    return output, functools.partial(masked_sums, mask_BS=mask_BS, source_B=source_B, num_sources=num_sources)


def here(array_BS: np.ndarray, device: torch.device) -> torch.Tensor:
    """This context rank's part of whole rows `[B, S, ...]`, on the device. Cut there: a copy made here would not be
    pinned."""
    whole_BS = torch.from_numpy(array_BS).to(device, non_blocking=True)
    cp = parallel_state.get_context_parallel_world_size()
    if cp == 1:
        return whole_BS
    chunks = chunks_of(array_BS.shape[1], cp, parallel_state.get_context_parallel_rank())
    return torch.cat([whole_BS[:, start:stop] for start, stop in chunks], dim=1)


def _from_first_tensor_rank(
    tokens_BS: torch.Tensor, labels_BS: torch.Tensor, mask_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What tensor parallel rank 0 read, on all ranks of its group, by one broadcast; stages between the first
    and the last need none of it."""
    if not (is_first_stage() or is_last_stage()):
        return tokens_BS, labels_BS, mask_BS
    bits_BS = mask_BS.view(torch.int32).long()  # weights as they are, whole numbers or not
    packed_3BS = torch.stack([tokens_BS, labels_BS, bits_BS])
    group = parallel_state.get_tensor_model_parallel_group()
    dist.broadcast(packed_3BS, parallel_state.get_tensor_model_parallel_src_rank(), group=group)
    return packed_3BS[0], packed_3BS[1], packed_3BS[2].int().view(mask_BS.dtype)


def evaluate(
    chunks: Sequence[Any], batches: Sequence[MicroBatch], device: torch.device, num_sources: int = 1
) -> LossSums:
    """Forward only over this rank's micro-batches, without gradients and in evaluation mode."""
    for chunk in chunks:
        chunk.eval()
    try:
        with torch.no_grad(), without_offloading(chunks):
            return run_schedule(
                chunks, whole_groups(batches, len(chunks)), num_sources, device, forward_only=True
            )
    finally:
        for chunk in chunks:
            chunk.train()


def top_tokens_of(
    chunks: Sequence[Any], batches: Sequence[MicroBatch], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a teacher answers to each micro-batch: ids and probabilities `[B, S, K]` of this context rank's part, on the
    last stage; nothing on others. Collective over the ranks of one copy of the model only."""
    return _collected(chunks, batches, device, lambda answer: answer)


def excess_losses(
    chunks: Sequence[Any],
    reference: Sequence[Any],
    batches: Sequence[MicroBatch],
    num_sources: int,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """What each token's loss is above the reference model's, where it is above, in nats, summed by source, and the
    counted tokens by source; both over all ranks. Forward only; collective."""
    ours, theirs = (_token_losses(model, batches, device) for model in (chunks, reference))
    sums_K2 = torch.zeros(num_sources, 2, dtype=torch.float64, device=device)
    if is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
        for batch, our_BS, their_BS in zip(batches, ours, theirs, strict=True):
            mask_BS = here(batch.loss_mask_BS, device).double()
            excess_BS = (our_BS - their_BS).clamp_min(0).double() * mask_BS
            source_B = torch.from_numpy(batch.source_B).to(device)
            sums_K2.index_add_(0, source_B, torch.stack([excess_BS.sum(1), mask_BS.sum(1)], dim=1))
    dist.all_reduce(sums_K2)
    sums = sums_K2.cpu().numpy()
    return sums[:, 0], sums[:, 1]


def _token_losses(
    chunks: Sequence[Any], batches: Sequence[MicroBatch], device: torch.device
) -> list[torch.Tensor]:
    """Loss of each token `[B, S]` of this context rank's part, by micro-batch; on the last stage."""
    for chunk in chunks:
        chunk.eval()
    try:
        return _collected(chunks, batches, device, lambda losses: losses.loss)
    finally:
        for chunk in chunks:
            chunk.train()


def _collected(
    chunks: Sequence[Any], batches: Sequence[MicroBatch], device: torch.device, keep: Callable[[Any], Any]
) -> list[Any]:
    """What `keep` takes of the last chunk's output for each micro-batch, on the last stage; nothing on others."""

    def forward(iterator: Iterator[MicroBatch], model: Any) -> Any:
        output, _ = _forward(iterator, model, 1, device)
        return output, lambda answer: (
            torch.zeros((), device=device),
            torch.ones((), dtype=torch.int, device=device),
            keep(answer),
        )

    whole = whole_groups(batches, len(chunks))
    batch_size, seq_length = batches[0].tokens_BS.shape
    with torch.no_grad(), without_offloading(chunks):
        answers = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[iter(whole) for _ in chunks] if len(chunks) > 1 else iter(whole),
            model=list(chunks),
            num_microbatches=len(whole),
            seq_length=seq_length,
            micro_batch_size=batch_size,
            forward_only=True,
        )
    return list(answers[: len(batches)])


def whole_groups(batches: Sequence[MicroBatch], num_chunks: int) -> list[MicroBatch]:
    """Interleaved stages pass micro-batches on in groups of one for each stage: fill the last group up with
    micro-batches in which nothing counts."""
    missing = -len(batches) % parallel_state.get_pipeline_model_parallel_world_size() if num_chunks > 1 else 0
    return [*batches, *[blank(batches[-1])] * missing] if missing else list(batches)


def blank(batch: MicroBatch) -> MicroBatch:
    """The micro-batch with nothing in it that counts."""
    return batch._replace(loss_mask_BS=np.zeros_like(batch.loss_mask_BS))
