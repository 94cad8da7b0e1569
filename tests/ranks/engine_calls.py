"""What the multi-rank tests run on each rank: build the engine, train on given tokens, report losses.

These functions use the engine directly, without data files, so that a test can compare with plain torch on the same tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cptron.checkpoint import layout
from cptron.checkpoint.sharded import load_shards, save_shards
from cptron.config.schema import OptimConfig
from cptron.data.batch import MicroBatch
from cptron.model.build import build_model
from cptron.optim.optimizer import build_optimizer, wrap_for_data_parallel
from cptron.optim.schedule import learning_rate
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
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
        batches.append(MicroBatch(part[:, :-1].copy(), part[:, 1:].copy(), mask, source))
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
    load_optimizer: bool = False,
    save_to: str = "",
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step on `tokens_NGS1 [steps, G, S + 1]`, starting from a checkpoint's shards."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = layout.read_manifest(Path(checkpoint)).arch if (Path(checkpoint) / "manifest.json").is_file() else None
    assert arch is not None
    with open_session(ranks, tp=tp, pp=pp, threads_per_rank=1) as session:
        model = wrap_for_data_parallel(build_model(arch, tp=tp, pp=pp, precision=precision, recompute=recompute))
        optimizer = build_optimizer(OPTIM, model, precision)
        shards = Path(checkpoint) / layout.SHARDS
        load_shards(shards, model.module, optimizer if load_optimizer else None)
        if not load_optimizer:
            optimizer.reload_model_params()
        history = []
        for step, tokens_GS1 in enumerate(tokens_NGS1, first_step):
            result = train_step(
                model,
                optimizer,
                micro_batches(tokens_GS1, 1, session.dp_rank, session.topology.dp),
                lr=learning_rate(OPTIM, step, 20),
                optim=OPTIM,
                num_sources=2,
                device=session.device.torch_device,
            )
            history.append((result.sums.loss_nats_per_token, result.grad_norm))
        if save_to:
            if session.ranks.is_main:
                (Path(save_to) / layout.SHARDS).mkdir(parents=True)
                manifest = (Path(checkpoint) / "manifest.json").read_text()
                (Path(save_to) / "manifest.json").write_text(manifest.replace('"files"', '"files_of_base"', 1))
            import torch.distributed as dist

            dist.barrier()
            save_shards(Path(save_to) / layout.SHARDS, model.module, optimizer)
        return history
