"""megatron-core's offloading of activations, kept to training steps.

Place in the flow: `model.build` starts it with a model, `pipeline.evaluate` holds it back. Adapter for
`megatron.core.pipeline_parallel`. It learns in the first step which activations come in which order, and follows that
order ever after; a forward pass without a backward pass is not part of it. Invariant: what is offloaded in a step
depends on no evaluation before it, and on no other model of the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.pipeline_parallel.fine_grained_activation_offload import PipelineOffloadManager


def begin_offloading() -> None:
    """Forget the order of an earlier model; megatron-core has one manager a process."""
    PipelineOffloadManager.OFFLOAD_MGR = None


@contextmanager
def without_offloading(chunks: Sequence[Any]) -> Iterator[None]:
    """Within this context activations stay where they are, and no forward pass is counted."""
    configs = {id(config): config for config in (chunk.config for chunk in chunks)}
    offloading = [config for config in configs.values() if config.fine_grained_activation_offloading]
    if not offloading:
        yield
        return
    manager = PipelineOffloadManager.get_instance()
    try:
        manager.disable_offload()
        for config in offloading:
            config.fine_grained_activation_offloading = False
        yield
    finally:
        manager.enable_offload()
        for config in offloading:
            config.fine_grained_activation_offloading = True
