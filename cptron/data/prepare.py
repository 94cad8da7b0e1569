"""Makes the index files of a run ahead of it: `cptron data prepare CONFIG`.

Place in the flow: on any machine without a GPU, before the job; the run then only maps them. Invariant: the
files it makes are those the run asks for, because both open the sources in the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cptron.config.schema import Config
from cptron.data.blend import integer_weights
from cptron.data.open import open_sources
from cptron.errors import ConfigError
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import manifest_path, verify


@dataclass(frozen=True, slots=True)
class Prepared:
    """One source, ready."""

    name: str
    documents: int
    tokens: int
    samples_per_epoch: int
    epochs: int
    """Epochs that the run enters, and whose index is there now."""
    elapsed_s: float


def prepare(config: Config, *, check_hashes: bool) -> list[Prepared]:
    """Scan every source whole, and make its index for each epoch of the run.

    Raises DataError on damaged files, ConfigError without `data.cache_dir`.
    """
    if config.data.order == "megatron":
        raise ConfigError(
            "data.order=megatron has index files of its own; build them with Megatron's prepare_cache.py"
        )
    if not config.data.cache_dir:
        raise ConfigError(
            "data.cache_dir='' must name a directory that the run can read; set data.cache_dir=DIR"
        )
    sources = open_sources(config)
    shares = [
        item.token_share / s.predictions_per_sample
        for item, s in zip(config.data.sources, sources, strict=True)
    ]
    weights = integer_weights(shares)
    redistribute = config.data.on_max_epochs == "redistribute"
    limits = [
        math.ceil(item.max_epochs * s.samples_per_epoch) if redistribute and item.max_epochs else math.inf
        for item, s in zip(config.data.sources, sources, strict=True)
    ]
    samples = _given(config.train.steps * config.train.global_batch_size, weights, limits)
    prepared = []
    for source, given, item in zip(sources, samples, config.data.sources, strict=True):
        started_s = time.perf_counter()
        if check_hashes and manifest_path(source.prefix).is_file():
            verify(source.prefix)
        tokens = IndexedTokens(source.prefix)
        epochs = max(1, math.ceil((given + 1) / source.samples_per_epoch))
        if item.max_epochs and config.data.on_max_epochs != "warn":
            epochs = min(epochs, math.ceil(item.max_epochs))
        source.prepare(epochs)
        elapsed_s = time.perf_counter() - started_s
        prepared.append(
            Prepared(
                source.name,
                tokens.num_documents,
                tokens.num_tokens,
                source.samples_per_epoch,
                epochs,
                elapsed_s,
            )
        )
    return prepared


def _given(samples: int, weights: Sequence[int], limits: Sequence[float]) -> list[float]:
    """How many of `samples` each source gives, when one that reaches its limit hands its share to the others."""
    given = [0.0] * len(weights)
    active = list(range(len(weights)))
    left = float(samples)
    while active and left > 0:
        total = sum(weights[i] for i in active)
        first = min(active, key=lambda i: (limits[i] - given[i]) / weights[i])
        taken = min(left, (limits[first] - given[first]) * total / weights[first])
        for i in active:
            given[i] += taken * weights[i] / total
        left -= taken
        active.remove(first)
    return given
