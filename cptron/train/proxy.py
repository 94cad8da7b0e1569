"""A proxy model for `cptron doremi`: each global batch is weighted by source before it is trained on.

Place in the flow: the loop sends every batch through `weighted`, and tells it when one was trained on. Invariant:
without `doremi.reference` nothing is built and batches are untouched; the weights of a dropped batch are dropped too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cptron.checkpoint import layout
from cptron.checkpoint.weights import load_weights
from cptron.data.batch import MicroBatch
from cptron.mixture.doremi import DomainWeights
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import finish_param_gather
from cptron.runtime.dist import agree
from cptron.runtime.pipeline import excess_losses
from cptron.train.setup import Run


class Proxy:
    """Group DRO of one run; collective in all that it does."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._reference: list[Any] = []
        self._next: DomainWeights | None = None
        path = run.config.doremi.reference
        if path:
            directory = agree(lambda: layout.resolve(path))
            self._reference = _frozen(run, directory)

    def weighted(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
        """This rank's micro-batches, with the weight of each sequence."""
        if not self._reference:
            return batches
        run, config = self._run, self._run.config.doremi
        finish_param_gather(run.chunks)
        excess_K, tokens_K = excess_losses(
            run.chunks, self._reference, batches, len(run.source_names), run.session.device.torch_device
        )
        tokens = {name: int(count) for name, count in zip(run.source_names, tokens_K.tolist(), strict=True)}
        excess = dict(zip(run.source_names, excess_K.tolist(), strict=True))
        saved = run.state.doremi
        before = DomainWeights.from_dict(saved) if saved else DomainWeights.uniform(run.source_names)
        self._next = before.updated(excess, tokens, config.step_size, config.smoothing)
        by_name = self._next.token_weights(tokens)
        weight_K = np.array([by_name[name] for name in run.source_names], np.float32)
        return [batch._replace(weight_B=weight_K[batch.source_B]) for batch in batches]

    def trained(self) -> None:
        """The batch weighted last has changed the weights of the model."""
        if self._next is not None:
            self._run.state.doremi = self._next.to_dict()


def _frozen(run: Run, directory: Path) -> list[Any]:
    """The reference model on this rank, cut like the proxy."""
    arch = agree(lambda: layout.read_manifest(directory).arch)
    chunks = build_chunks(arch, run.session.topology.layout, ModelOptions.of(run.config))
    load_weights(directory, chunks)
    for chunk in chunks:
        chunk.requires_grad_(False)
    return list(chunks)
