"""Traces one optimizer step of one rank without its machine: fake tensors, fake ranks, the trainer's own functions.

Place in the flow: `cptron plan --dry-run` starts it as a process of its own. Invariant: model, data parallel wrapper,
optimizer, pipeline schedule and step are those that `setup` and `loop` use; nothing of them is copied here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cptron.config.schema import Config
from cptron.data.batch import MicroBatch
from cptron.model.architecture import Architecture
from cptron.plan.activations import chunks_in_flight
from cptron.plan.parameters import names_of_model
from cptron.runtime.pipeline import unwrapped
from cptron.runtime.topology import Layout, Topology
from cptron.trace.fake_ranks import open_fake_rank
from cptron.trace.ledger import GRADIENTS, OPTIMIZER, WEIGHTS, Ledger, Moment
from cptron.trace.stand_ins import FakeTracker, for_any_trace, for_gpu, replaced
from cptron.trace.tracker import Tracker
from cptron.train.engine import Engine, build_engine
from cptron.train.step import train_step

CUDA_UNIT = 512
"""torch's allocator on GPUs rounds up to multiples of so many bytes."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What a rank was seen to allocate, in bytes."""

    static: Moment
    """Before the first step."""
    peak: Moment
    """The fullest moment of a step."""
    micro_batches: int
    """Micro-batches that were traced."""


def trace_rank(config: Config, arch: Architecture, world_size: int, rank: int, *, on_gpu: bool) -> Traced:
    """Trace `rank` of `world_size`, with the kernels of a GPU or with those of a CPU."""
    topology = Topology(world_size, Layout.of(config.parallel))
    tracker = FakeTracker(Ledger(CUDA_UNIT if on_gpu else 1))
    batches = traced_batches(config, topology, topology.pp_rank(rank))
    with open_fake_rank(topology, rank), faked(tracker, names_of_model(config, arch), on_gpu=on_gpu):
        static = step_of(config, arch, batches, tracker, on_gpu=on_gpu)
    return Traced(static, tracker.ledger.peak(), len(batches))


@contextmanager
def faked(tracker: Tracker, names_elsewhere: Collection[str], *, on_gpu: bool) -> Iterator[None]:
    """In the context tensors have no memory and the tracker counts what they would have."""
    table = for_any_trace(names_elsewhere) | (for_gpu(tracker) if on_gpu else {})
    with replaced(table), FakeTensorMode(allow_non_fake_inputs=True), tracker:
        yield


def step_of(
    config: Config, arch: Architecture, batches: list[MicroBatch], tracker: Tracker, *, on_gpu: bool
) -> Moment:
    """Build the engine and take one step, with `tracker` entered; what was allocated between the two."""
    ledger = tracker.ledger
    ledger.begin("build")
    engine = build_engine(config, arch, on_gpu=on_gpu)
    _say_what_is_static(engine, tracker)
    static = ledger.now()
    ledger.begin("forward and backward")
    with tracker.watching(engine.chunks, _received):
        train_step(
            engine.chunks,
            engine.optimizer,
            batches,
            lr=1e-5,
            optim=config.optim,
            num_sources=len(config.data.sources),
            device=torch.device("cpu"),
            before_update=lambda: ledger.begin("optimizer"),
        )
    _say_what_is_static(engine, tracker)  # of optimizers that make their state in the first step
    ledger.close()
    return static


def traced_batches(config: Config, topology: Topology, stage: int) -> list[MicroBatch]:
    """As many of the global batch's micro-batches as fill the pipeline, and one more, which must not add anything.
    The first token of a row is a document of its own: kernels are those of several documents, keys those of one."""
    train, seq_length, layout = config.train, config.data.seq_length, topology.layout
    all_of_them = train.global_batch_size // (train.micro_batch_size * topology.dp)
    in_flight = chunks_in_flight(layout, stage, all_of_them)
    count = min(all_of_them, -(-in_flight // layout.virtual_stages) + 1)
    shape = (train.micro_batch_size, seq_length)
    documents_BS = np.zeros(shape, np.int32)
    documents_BS[:, 1:] = 1
    batch = MicroBatch(
        tokens_BS=np.zeros(shape, np.int64),
        labels_BS=np.zeros(shape, np.int64),
        loss_mask_BS=np.ones(shape, np.float32),
        source_B=np.zeros(train.micro_batch_size, np.int64),
        documents_BS=documents_BS,
        on_first_tensor_rank=layout.tp > 1,
    )
    return [batch] * count


def _received(chunk: Any) -> Any:
    """The hidden states that this chunk was sent."""
    return unwrapped(chunk).decoder.input_tensor


def _say_what_is_static(engine: Engine, tracker: Tracker) -> None:
    parameters = [parameter for chunk in engine.bare for parameter in chunk.parameters()]
    tracker.is_for(parameters, WEIGHTS)
    tracker.is_for((buffer.grad_data for chunk in engine.chunks for buffer in chunk.buffers), GRADIENTS)
    for part in engine.optimizer.chained_optimizers:
        inner = part.optimizer
        for group in inner.param_groups:
            for param in group["params"]:
                state = [value for value in inner.state[param].values() if isinstance(value, torch.Tensor)]
                tracker.is_for([param, *state], OPTIMIZER)
