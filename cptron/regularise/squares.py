"""Squares of the gradients of single sequences, summed: what the empirical Fisher information is made of.

Place in the flow: `fisher` runs it over data and stores the result. Invariant: a gradient is complete before it is
squared: summed over context ranks, over tensor ranks where they share a parameter, and over both stages of tied
embeddings; and data parallel ranks, which work on other sequences, are summed after. So the result does not depend on
the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cptron.data.batch import MicroBatch
from cptron.optim.data_parallel import wrap_chunks
from cptron.runtime.groups import sum_over_context, sum_over_data
from cptron.runtime.pipeline import run_schedule, whole_groups


class Squares:
    """Accumulates in fp32: 4 bytes a parameter beside the gradient's 4, on every rank; there is no optimizer."""

    def __init__(self, bare: Sequence[Any], device: torch.device) -> None:
        self._device = device
        self._chunks = wrap_chunks(bare, overlap=False)
        for chunk in self._chunks:
            _complete_without_data_ranks(chunk)
        self._sums = [
            [torch.zeros_like(buffer.grad_data) for buffer in chunk.buffers] for chunk in self._chunks
        ]
        self.tokens = 0
        """Predicted, over all ranks."""

    def add(self, batches: Sequence[MicroBatch]) -> None:
        """Add the square of the gradient of the summed loss of `batches`, which are this rank's; collective."""
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        whole = whole_groups(batches, len(self._chunks))
        self.tokens += run_schedule(self._chunks, whole, 1, self._device, forward_only=False).tokens
        for chunk, sums in zip(self._chunks, self._sums, strict=True):
            for buffer, total in zip(chunk.buffers, sums, strict=True):
                total.addcmul_(buffer.grad_data, buffer.grad_data)

    def result(self) -> dict[torch.Tensor, torch.Tensor]:
        """The sums over all ranks by parameter, flat; collective. Nothing can be added after it."""
        found: dict[torch.Tensor, torch.Tensor] = {}
        for chunk, sums in zip(self._chunks, self._sums, strict=True):
            for buffer, total in zip(chunk.buffers, sums, strict=True):
                sum_over_data(total)
                for param, (start, stop, _) in buffer.param_index_map.items():
                    found[param] = total[start:stop]
        return found


def _complete_without_data_ranks(chunk: Any) -> None:
    """Let megatron-core complete the gradients of a chunk as in training, but sum them over context ranks only, and not
    divide them by tokens."""

    def over_context(force_all_reduce: bool = False) -> None:
        for buffer in chunk.buffers:
            sum_over_context(buffer.grad_data)

    complete = chunk.config.finalize_model_grads_func
    chunk.finish_grad_sync = over_context
    chunk.config.finalize_model_grads_func = lambda model, num_tokens=None, **rest: complete(
        model, None, **rest
    )
