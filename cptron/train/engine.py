"""The engine of a run: this rank's part of the model, wrapped for data parallelism, and its optimizer.

Place in the flow: `setup.prepare` fills it with weights; `dry_run` traces it without any. Invariant: what a run
allocates before its first step is allocated here and by nothing else but the regularisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cptron.config.schema import Config
from cptron.model.adapters import freeze_base, init_adapters
from cptron.model.architecture import Architecture
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import build_optimizer, freeze, wrap_chunks
from cptron.runtime.topology import Layout


@dataclass(frozen=True, slots=True)
class Engine:
    """What is trained and what trains it."""

    bare: list[Any]
    """The parts of the model on this rank."""
    chunks: list[Any]
    """The same, each wrapped for data parallelism."""
    optimizer: Any


def build_engine(config: Config, arch: Architecture, *, on_gpu: bool) -> Engine:
    """With random weights; collective."""
    options = ModelOptions.of(config)
    bare = build_chunks(arch, Layout.of(config.parallel), options)
    if options.adapter.kind == "none":
        freeze(bare, config.optim.frozen)
    else:
        init_adapters(bare, config.run.seed)
        freeze_base(bare)
    # adapters are small, and their parameters are read without the module calls that gathering waits for
    overlap = on_gpu and config.parallel.overlap and options.adapter.kind == "none"
    chunks = wrap_chunks(bare, overlap, optimizer=config.optim.name)
    optimizer = build_optimizer(config.optim, chunks, config.train.precision)
    return Engine(bare, chunks, optimizer)
