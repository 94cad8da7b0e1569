"""megatron-core's offloading of activations on the CPU, where what it needs of Transformer Engine is one switch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from engine_calls import OPTIM, micro_batches

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.extensions import transformer_engine

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import MemoryConfig
from cptron.model import build
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import build_optimizer, wrap_chunks
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.pipeline import evaluate
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.train.step import train_step


def losses_with_evaluation(
    checkpoint: str, tokens_NGS1: np.ndarray, layout: Layout, memory: MemoryConfig
) -> list[float]:
    """Losses of training steps, each after an evaluation of its own batch; all activations are large enough."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    switch, checked = transformer_engine.cpu_offload, build._check_device
    transformer_engine.cpu_offload = SimpleNamespace(CPUOffloadEnabled=False)
    build._check_device = lambda *_: None  # it asks for a GPU
    try:
        with open_session(ranks, layout, threads_per_rank=1) as session:
            bare = build.build_chunks(arch, layout, ModelOptions(memory=memory))
            for chunk in bare:
                chunk.config.min_offloaded_tensor_size = 1
            chunks = wrap_chunks(bare, overlap=False)
            optimizer = build_optimizer(OPTIM, chunks, "fp32")
            load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, bare)
            optimizer.reload_model_params()
            losses = []
            for tokens_GS1 in tokens_NGS1:
                batches: Any = micro_batches(tokens_GS1, 1, session.dp_rank, session.topology.dp)
                evaluated = [batch._replace(source_B=batch.source_B * 0) for batch in batches[:2]]
                losses.append(evaluate(chunks, evaluated, session.device.torch_device).loss_nats_per_token)
                options: Any = {"optim": OPTIM, "num_sources": 2, "device": session.device.torch_device}
                result = train_step(chunks, optimizer, batches, lr=OPTIM.lr, **options)
                losses += [result.sums.loss_nats_per_token, result.grad_norm]
            return losses
    finally:
        transformer_engine.cpu_offload, build._check_device = switch, checked
