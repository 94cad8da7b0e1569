"""One optimizer step of the engine under any layout, with whole gradients and weights, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import OptimConfig
from cptron.data.batch import MicroBatch
from cptron.model.adapters import freeze_base, init_adapters, init_magnitudes, is_base
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import (
    apply_gradients,
    build_optimizer,
    gradient_norm,
    set_rates,
    wrap_chunks,
)
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.pipeline import run_schedule
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout

# a large epsilon: Adam's first step is a gradient's sign, and the sign of what is 0 but for rounding is a coin toss
OPTIM = OptimConfig(lr=1e-2, eps=1e-3, weight_decay=0.1, clip_grad_norm=1.0)

Piece = tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]
"""Name, whole shape, place in the whole, and values of what one rank holds of a tensor."""


@dataclass(frozen=True)
class Batch:
    """A global batch: G rows of W tokens."""

    tokens_GW: np.ndarray
    labels_GW: np.ndarray
    mask_GW: np.ndarray
    documents_GW: np.ndarray

    def micro_batches(self, micro: int, dp_rank: int, dp: int) -> list[MicroBatch]:
        """The part of one data parallel rank."""
        found = []
        for start in range(dp_rank * micro, len(self.tokens_GW), dp * micro):
            rows = slice(start, start + micro)
            arrays = (self.tokens_GW[rows], self.labels_GW[rows], self.mask_GW[rows])
            source_B = np.arange(start, start + micro, dtype=np.int64) % 2
            found.append(MicroBatch(*arrays, source_B, self.documents_GW[rows]))
        return found


@dataclass(frozen=True)
class Step:
    """What one rank knows after one step."""

    loss: float
    grad_norm: float
    tokens: int
    gradients: list[Piece]
    weights: list[Piece]


def one_step(
    checkpoint: str, batch: Batch, layout: Layout, options: ModelOptions, micro: int, overlap: bool = False
) -> Step:
    """Load, one step forward and backward over the global batch, and the update."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, layout, threads_per_rank=1) as session:
        bare = build_chunks(arch, layout, options)
        if options.adapter.kind != "none":
            init_adapters(bare, seed=1)
            freeze_base(bare)
        chunks = wrap_chunks(bare, overlap)
        optimizer = build_optimizer(OPTIM, chunks, options.precision)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, bare, holds=is_base)
        init_magnitudes(bare)
        optimizer.reload_model_params()
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        mine = batch.micro_batches(micro, session.dp_rank, session.topology.dp)
        sums = run_schedule(chunks, mine, 2, session.device.torch_device, forward_only=False)
        gather_gradients(chunks)
        gradients = pieces(bare, "main_grad")
        set_rates(optimizer, OPTIM.lr, OPTIM)
        norm = gradient_norm(optimizer)
        apply_gradients(optimizer, OPTIM.clip_grad_norm, norm)
        if overlap:
            from cptron.optim.optimizer import finish_param_gather

            finish_param_gather(chunks)
        return Step(sums.loss_nats_per_token, norm, sums.tokens, gradients, pieces(bare, "data"))


def gather_gradients(chunks: list[Any]) -> None:
    """Every data parallel rank has reduced its share of each buffer; give all of them the whole."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for chunk in chunks:
        for buffer in chunk.buffers:
            for bucket in buffer.buckets:
                own = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


def pieces(chunks: list[Any], what: str) -> list[Piece]:
    """Parts of all tensors on this rank, placed by megatron-core's own description of how they are cut."""
    found: list[Piece] = []
    for chunk in chunks:
        for entry in chunk.sharded_state_dict(metadata=None).values():
            if isinstance(entry, ShardedTensorFactory):
                values = getattr(entry.data, what, None)
                if values is None:  # frozen
                    continue
                values = values.detach()
                parts = entry.build_fn(entry.key, values, entry.replica_id, entry.flattened_range)
                found += [_piece(part, part.data) for part in parts]
            elif isinstance(entry, ShardedTensor) and hasattr(entry.data, what):
                found.append(_piece(entry, getattr(entry.data, what).detach()))
    return found


def _piece(entry: Any, values: torch.Tensor) -> Piece:
    extra = entry.prepend_axis_num
    shape, offset = entry.global_shape[extra:], entry.global_offset[extra:]
    name = entry.key
    if extra:  # layers of one kind are one tensor with the layer as its first axis
        assert extra == 1
        name = name.replace("decoder.layers.", f"decoder.layers.{entry.global_offset[0]}.", 1)
    return name, tuple(shape), tuple(offset), values.float().numpy().copy()


def assemble(steps: list[Step], what: str) -> dict[str, np.ndarray]:
    """Whole tensors from the pieces of all ranks; copies must be equal."""
    whole: dict[str, np.ndarray] = {}
    for step in steps:
        for name, shape, offset, values in getattr(step, what):
            place = tuple(
                slice(start, start + size) for start, size in zip(offset, values.shape, strict=True)
            )
            known = whole.setdefault(name, np.full(shape, np.nan, np.float32))[place]
            seen = ~np.isnan(known)
            np.testing.assert_allclose(
                values[seen], known[seen], rtol=0, atol=2e-6 * np.abs(values).max(initial=0)
            )
            known[...] = values
    assert all(not np.isnan(values).any() for values in whole.values()), "some part of a tensor is on no rank"
    return whole
