"""Logits and a few training steps of the engine under any layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cptron.runtime.megatron_ready  # noqa: F401

from composition_calls import OPTIM, Batch, Piece, pieces
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.model.segments import local_tokens
from cptron.optim.optimizer import build_optimizer, wrap_chunks
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.train.step import train_step


@dataclass(frozen=True)
class FamilyRun:
    """What one rank knows after a few steps."""

    places: np.ndarray
    """Tokens of the row that this rank holds."""
    logits: np.ndarray | None
    """Of these, before the first step, on ranks of the last stage."""
    history: list[tuple[float, float]]
    """Loss and gradient norm of each step."""
    weights: list[Piece]


def logits_and_steps(
    checkpoint: str, tokens_W: np.ndarray, batches: list[Batch], layout: Layout, options: ModelOptions
) -> FamilyRun:
    """Logits of one row, then a step on each batch in micro-batches of two rows."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, layout, threads_per_rank=1) as session:
        bare = build_chunks(arch, layout, options)
        chunks = wrap_chunks(bare, overlap=False)
        optimizer = build_optimizer(OPTIM, chunks, options.precision)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, bare)
        optimizer.reload_model_params()
        places = local_tokens(len(tokens_W), layout.cp, session.topology.cp_rank(ranks.rank))
        with torch.no_grad():
            logits = _logits(bare[0], torch.from_numpy(tokens_W[None, places]), len(tokens_W), arch.vocab_size)
        history = []
        for batch in batches:
            result = train_step(
                chunks,
                optimizer,
                batch.micro_batches(2, session.dp_rank, session.topology.dp),
                lr=OPTIM.lr,
                optim=OPTIM,
                num_sources=2,
                device=session.device.torch_device,
            )
            history.append((result.sums.loss_nats_per_token, result.grad_norm))
        return FamilyRun(places, logits, history, pieces(bare, "data"))


def _logits(model: Any, tokens_BS: torch.Tensor, seq_length: int, vocab_size: int) -> np.ndarray | None:
    """megatron-core's schedule, forward; the vocabulary is gathered on the last stage."""
    found: list[torch.Tensor] = []

    def forward(batches: Any, stage: Any) -> Any:
        next(batches)
        output = stage(tokens_BS)

        def keep(logits: torch.Tensor) -> Any:
            found.append(gather_from_tensor_model_parallel_region(logits))
            return logits.sum(), torch.tensor(1), {}

        return output, keep

    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter([0]),
        model=[model],
        num_microbatches=1,
        seq_length=seq_length,
        micro_batch_size=1,
        forward_only=True,
    )
    return found[0][0, :, :vocab_size].numpy() if found else None
