"""megatron-core's process groups for one topology.

Place in the flow: after `init_process_group`, before the model is built. Adapter for
`megatron.core.parallel_state`. Invariant: the ranks it reports equal those of `topology.Topology`.
"""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable

import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state, tensor_parallel

from cptron.runtime.topology import Topology


def init_groups(topology: Topology, seed: int, timeout_s: int = 600) -> None:
    """Create the model- and data-parallel groups and seed the random number trackers."""
    layout = topology.layout
    gc.collect()  # models and optimizers of an earlier topology keep its groups, each with threads, in cycles
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if layout.virtual_stages > 1 else None,
        context_parallel_size=layout.cp,
        create_gloo_process_groups=False,  # on the CPU the default groups are gloo; on the GPU none is needed
        distributed_timeout_minutes=max(
            1, datetime.timedelta(seconds=timeout_s) // datetime.timedelta(minutes=1)
        ),
    )
    rank = dist.get_rank()
    assert parallel_state.get_tensor_model_parallel_rank() == topology.tp_rank(rank)
    assert parallel_state.get_pipeline_model_parallel_rank() == topology.pp_rank(rank)
    assert parallel_state.get_context_parallel_rank() == topology.cp_rank(rank)
    assert parallel_state.get_data_parallel_rank() == topology.dp_rank(rank)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


_releases: list[Callable[[], None]] = []


def before_destroy(release: Callable[[], None]) -> None:
    """Have `release` called when the groups are destroyed: for objects that would keep a group alive for ever."""
    _releases.append(release)


def destroy_groups() -> None:
    """Forget the groups, so that another topology can be set up in the same process."""
    while _releases:
        _releases.pop()()
    parallel_state.destroy_model_parallel()


def sum_over_context(tensor: torch.Tensor) -> None:
    """Sum in place over the ranks that a sequence is cut over."""
    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(tensor, group=parallel_state.get_context_parallel_group())


def sum_over_data(tensor: torch.Tensor) -> None:
    """Sum in place over the ranks that hold the same part of the model and work on other sequences."""
    if parallel_state.get_data_parallel_world_size() > 1:
        dist.all_reduce(tensor, group=parallel_state.get_data_parallel_group())


def stage_rank() -> int:
    """This rank's pipeline stage, from 0."""
    return int(parallel_state.get_pipeline_model_parallel_rank())


def is_first_stage() -> bool:
    """This rank holds the embedding (in the first of its chunks)."""
    return bool(parallel_state.is_pipeline_first_stage(ignore_virtual=True))


def is_last_stage() -> bool:
    """This rank holds the output layer and computes the loss (in the last of its chunks)."""
    return bool(parallel_state.is_pipeline_last_stage(ignore_virtual=True))
