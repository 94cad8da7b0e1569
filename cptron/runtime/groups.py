"""megatron-core's process groups for one topology.

Place in the flow: after `init_process_group`, before the model is built. Adapter: the only module that
touches `megatron.core.parallel_state`. Invariant: the ranks it reports equal those of `topology.Topology`.
"""

from __future__ import annotations

import datetime

import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state, tensor_parallel

from cptron.runtime.topology import Topology


def init_groups(topology: Topology, seed: int, timeout_s: int = 600) -> None:
    """Create the model- and data-parallel groups and seed the random number trackers."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        create_gloo_process_groups=False,  # on the CPU the default groups are gloo; on the GPU none is needed
        distributed_timeout_minutes=max(
            1, datetime.timedelta(seconds=timeout_s) // datetime.timedelta(minutes=1)
        ),
    )
    rank = dist.get_rank()
    assert parallel_state.get_tensor_model_parallel_rank() == topology.tp_rank(rank)
    assert parallel_state.get_pipeline_model_parallel_rank() == topology.pp_rank(rank)
    assert parallel_state.get_data_parallel_rank() == topology.dp_rank(rank)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def destroy_groups() -> None:
    """Forget the groups, so that another topology can be set up in the same process."""
    parallel_state.destroy_model_parallel()


def is_first_stage() -> bool:
    """This rank holds the embedding."""
    return bool(parallel_state.is_pipeline_first_stage())


def is_last_stage() -> bool:
    """This rank holds the output layer and computes the loss."""
    return bool(parallel_state.is_pipeline_last_stage())
