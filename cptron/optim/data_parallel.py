"""megatron-core's DistributedDataParallel around each chunk of this rank's model.

Place in the flow: after parameters are frozen, before the optimizer is made. Adapter: hides how gradients are
reduced and parameters gathered. Invariant: after `finish_param_gather` every rank holds whole parameters; with
overlap they are not whole between an optimizer step and the next forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)

from cptron.optim.registry import shards_state
from cptron.runtime.groups import before_destroy


def wrap_chunks(
    chunks: Sequence[Any], overlap: bool, *, optimizer: str = "adamw", bucket_elements: int | None = None
) -> list[Any]:
    """Each chunk in a DistributedDataParallel of its own: fp32 gradients in contiguous buffers.

    `overlap`: reduce gradients while the backward pass goes on and gather parameters while the forward pass does.
    `optimizer`: the configured `optim.name`. `bucket_elements`: size of one message with overlap; None means
    megatron-core's choice.
    """
    sharded = shards_state(optimizer)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and sharded,
        use_distributed_optimizer=sharded,
        bucket_size=bucket_elements,
        fp8_param_gather=chunks[
            0
        ].config.fp8_param,  # else the newest megatron-core leaves such parameters unchanged
        check_for_nan_in_grad=False,  # `apply_gradients` checks the global norm, on every rank alike
    )
    wrapped = [
        DistributedDataParallel(
            config=chunk.config,
            ddp_config=ddp_config,
            module=chunk,
            disable_bucketing=number > 0,  # messages of later chunks are not on the critical path
        )
        for number, chunk in enumerate(chunks)
    ]
    _tell_schedules(wrapped, overlap)
    before_destroy(lambda: _release(wrapped))
    return wrapped


def _release(wrapped: list[Any]) -> None:
    """Undo the cycle from a chunk over autograd's nodes and their hooks back to it, which nothing else collects."""
    for chunk in wrapped:
        chunk.grad_accs.clear()


def _tell_schedules(wrapped: Sequence[Any], overlap: bool) -> None:
    """What megatron-core's schedules call, one function for one chunk and a list for several."""

    def one_or_list(functions: list[Any]) -> Any:
        return functions[0] if len(functions) == 1 else functions

    for chunk in wrapped:
        config = chunk.config
        config.finalize_model_grads_func = finalize_model_grads  # reduces, divides by the global tokens
        config.no_sync_func = one_or_list([c.no_sync for c in wrapped]) if overlap else None
        config.grad_sync_func = one_or_list([c.start_grad_sync for c in wrapped]) if overlap else None
        config.param_sync_func = None  # each stage gathers when its own forward pass needs it


def finish_param_gather(chunks: Sequence[Any]) -> None:
    """Make parameters whole after a step; collective over data parallel ranks, and nothing to do without overlap.

    To be called before parameters are read by anything but a training forward pass: evaluating, saving, hashing.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
                if group.param_gather_handle is not None or not group.param_gather_dispatched:
                    group.start_param_sync(force_sync=True)
