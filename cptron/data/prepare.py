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
from cptron.data.mix import Mix
from cptron.data.open import mix_of, open_sources
from cptron.data.source import TokenSource
from cptron.data.stages import stage_steps
from cptron.errors import ConfigError
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import manifest_path, verify


@dataclass(frozen=True, slots=True)
class Prepared:
    """One source in samples of one length, ready."""

    name: str
    """Its account."""
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
    mix = mix_of(config)
    given = _given_by_stage(mix, sources, config)
    prepared = []
    for index, (source, item) in enumerate(zip(sources, config.data.sources, strict=True)):
        started_s = time.perf_counter()
        if check_hashes and manifest_path(source.prefix).is_file():
            verify(source.prefix)
        tokens = IndexedTokens(source.prefix)
        for length in sorted({length for at, length in given if at == index}):
            used, samples = source.at_length(length), given[index, length]
            epochs = max(1, math.ceil((samples + 1) / used.samples_per_epoch))
            if item.max_epochs and config.data.on_max_epochs != "warn":
                epochs = min(epochs, math.ceil(item.max_epochs))
            used.prepare(epochs)
            elapsed_s = time.perf_counter() - started_s
            prepared.append(
                Prepared(
                    used.account,
                    tokens.num_documents,
                    tokens.num_tokens,
                    used.samples_per_epoch,
                    epochs,
                    elapsed_s,
                )
            )
    return prepared


def _given_by_stage(mix: Mix, sources: Sequence[TokenSource], config: Config) -> dict[tuple[int, int], float]:
    """How many samples each source gives in samples of each length: by its index and the length."""
    by_stage = [[s.at_length(stage.seq_length or s.seq_length) for s in sources] for stage in mix.blends]
    given: dict[tuple[int, int], float] = {}
    passed = [0.0] * len(sources)  # epochs, over all stages
    left = float(config.train.steps)
    steps = stage_steps(mix.blends, mix.tokens_per_batch(by_stage))
    for stage, used, of_stage in zip(mix.blends, by_stage, steps, strict=True):
        drawn = [index for index, share in enumerate(stage.token_shares) if share]
        shares = [stage.token_shares[index] / used[index].predictions_per_sample for index in drawn]
        limits = [
            max(0.0, math.ceil((limit - passed[index]) * used[index].samples_per_epoch))
            if limit and mix.on_max_epochs == "redistribute"
            else math.inf
            for index, limit in ((index, mix.max_epochs[index]) for index in drawn)
        ]
        samples = min(left, of_stage) * (stage.global_batch_size or config.train.global_batch_size)
        for index, count in zip(drawn, _given(samples, integer_weights(shares), limits), strict=True):
            account = index, used[index].seq_length
            given[account] = given.get(account, 0.0) + count
            passed[index] += count / used[index].samples_per_epoch
        left -= min(left, of_stage)
    return given


def _given(samples: float, weights: Sequence[int], limits: Sequence[float]) -> list[float]:
    """How many of `samples` each source gives, when one that reaches its limit hands its share to the others."""
    given = [0.0] * len(weights)
    active = list(range(len(weights)))
    left = samples
    while active and left > 0:
        total = sum(weights[i] for i in active)
        first = min(active, key=lambda i: (limits[i] - given[i]) / weights[i])
        taken = min(left, (limits[first] - given[first]) * total / weights[first])
        for i in active:
            given[i] += taken * weights[i] / total
        left -= taken
        active.remove(first)
    return given
