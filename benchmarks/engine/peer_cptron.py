"""The engine itself, as a training run drives it: `train_step` on what `wrap_chunks` and `build_optimizer` made.

Place in the flow: one of the peers of `one`. Invariant: nothing is switched on or off that a run would not; the
backend is the native one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.engine.batches import batches_of
from benchmarks.engine.cases import Case
from benchmarks.engine.timing import CLIP, LEARNING_RATE, Step
from cptron.checkpoint import layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import Fp8Config, OptimConfig
from cptron.data.batch import MicroBatch
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import build_optimizer, wrap_chunks
from cptron.runtime.session import open_session
from cptron.train.step import train_step

OPTIM = OptimConfig(lr=LEARNING_RATE, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, clip_grad_norm=CLIP)


def describe(case: Case) -> str:
    """What it trains in."""
    if case.precision == "fp32":
        return "all fp32"
    products = {"none": "bf16", "tensorwise": "FP8 (tensorwise)", "rowwise": "FP8 (rowwise)"}[case.fp8]
    return f"bf16 weights, {products} products of the layers, bf16 output layer, fp32 gradients, masters and moments"


@contextmanager
def prepared(case: Case, start: Path | None, threads: int) -> Iterator[Step]:
    """A function that does step n and returns its loss; `start` is a checkpoint, None means random weights."""
    options = ModelOptions(precision=case.precision, fp8=Fp8Config(recipe=case.fp8))
    with open_session(device=case.device, threads_per_rank=threads) as session:
        bare = build_chunks(case.arch, options=options)
        chunks = wrap_chunks(bare, overlap=case.device == "cuda")
        optimizer = build_optimizer(OPTIM, chunks, case.precision)
        if start is not None:
            load_shards(start / layout.SHARDS, bare)
        optimizer.reload_model_params()
        batches = [
            MicroBatch(
                batch.tokens_BS,
                batch.labels_BS,
                np.ones(batch.tokens_BS.shape, np.float32),
                np.zeros(len(batch.tokens_BS), np.int64),
                batch.documents_BS,
            )
            for batch in batches_of(case)
        ]

        def step(number: int) -> float:
            result = train_step(
                chunks,
                optimizer,
                [batches[number % len(batches)]],
                lr=LEARNING_RATE,
                optim=OPTIM,
                num_sources=1,
                device=session.device.torch_device,
            )
            return result.sums.loss_nats_per_token

        yield step
