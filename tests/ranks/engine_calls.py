"""What the multi-rank tests run on each rank: build the engine, train on given tokens, report losses.

These functions use the engine directly, without data files, so that a test can compare with plain torch on
the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from shard_files import save_shards

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import MemoryConfig, OptimConfig
from cptron.data.batch import MicroBatch
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import build_optimizer, wrap_chunks
from cptron.optim.schedule import learning_rate
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.train.step import train_step

OPTIM = OptimConfig(lr=1e-3, lr_min=1e-4, warmup_steps=2, weight_decay=0.1, clip_grad_norm=1.0)


def micro_batches(tokens_GS1: np.ndarray, micro: int, dp_rank: int, dp_size: int) -> list[MicroBatch]:
    """Cut a global batch of `[G, S + 1]` tokens for one data parallel rank."""
    batches = []
    for start in range(dp_rank * micro, len(tokens_GS1), dp_size * micro):
        part = tokens_GS1[start : start + micro]
        mask = np.ones(part[:, 1:].shape, dtype=np.float32)
        mask[:, -3:] = 0  # some targets do not count, and not the same number on each rank
        mask[0, :5] = 0
        source = np.arange(start, start + micro, dtype=np.int64) % 2
        documents = np.zeros(mask.shape, dtype=np.int32)
        batches.append(MicroBatch(part[:, :-1].copy(), part[:, 1:].copy(), mask, source, documents))
    return batches


def train_losses(
    checkpoint: str,
    tokens_NGS1: np.ndarray,
    *,
    tp: int,
    pp: int,
    precision: str = "fp32",
    recompute: str = "none",
    first_step: int = 0,
    resume_shards: str = "",
    save_shards_to: str = "",
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step on `tokens_NGS1 [steps, G, S + 1]`.

    Starts from the weights of `checkpoint`, or from weights and optimizer in `resume_shards`.
    """
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    layout = Layout(tp=tp, pp=pp)
    options = ModelOptions(precision=precision, memory=MemoryConfig(recompute=recompute))
    with open_session(ranks, layout, threads_per_rank=1) as session:
        bare = build_chunks(arch, layout, options)
        chunks = wrap_chunks(bare, overlap=False)
        optimizer = build_optimizer(OPTIM, chunks, precision)
        if resume_shards:
            load_shards(Path(resume_shards), bare, optimizer)
        else:
            load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, bare)
            optimizer.reload_model_params()
        history = []
        for step, tokens_GS1 in enumerate(tokens_NGS1, first_step):
            result = train_step(
                chunks,
                optimizer,
                micro_batches(tokens_GS1, 1, session.dp_rank, session.topology.dp),
                lr=learning_rate(OPTIM, step, 20),
                optim=OPTIM,
                num_sources=2,
                device=session.device.torch_device,
            )
            history.append((result.sums.loss_nats_per_token, result.grad_norm))
        if save_shards_to:
            save_shards(Path(save_shards_to), bare, optimizer)
        return history


def first_logits(checkpoint: str, token_ids: list[int], *, tp: int, pp: int) -> np.ndarray | None:
    """Logits `[S, V]` of the checkpoint under a layout; None on ranks that do not hold the last stage."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    layout = Layout(tp=tp, pp=pp)
    with open_session(ranks, layout, threads_per_rank=1), torch.no_grad():
        (model,) = build_chunks(arch, layout)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, [model.eval()])
        return _pipeline_logits(model, torch.tensor([token_ids]), arch.vocab_size)


def _pipeline_logits(model: Any, tokens_BS: torch.Tensor, vocab_size: int) -> np.ndarray | None:
    """Run megatron-core's own schedule forward and gather the vocabulary on the last stage."""
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
        seq_length=tokens_BS.size(1),
        micro_batch_size=1,
        forward_only=True,
    )
    return found[0][0, :, :vocab_size].numpy() if found else None
