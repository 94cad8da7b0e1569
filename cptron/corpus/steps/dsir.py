"""Selects the documents that are most like a target, by importance of hashed n-grams (DSIR, Xie et al. 2023).

Place in the flow: a corpus step; behind deduplication, since it chooses repeated documents together.
Invariant: log weights are sums of integers, so they are the same on any machine; noise comes from documents' ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import Document, draw
from cptron.corpus.select.array_file import save_arrays
from cptron.corpus.select.budget import Sizes, Unit, budget_problem, choose, gumbel, tokenizer_files
from cptron.corpus.select.examples import example_files, examples
from cptron.corpus.select.ngrams import MOST_BUCKETS, bucket_counts
from cptron.corpus.select.scored import ScoredStep, load_features, write_figures
from cptron.corpus.select.sparse import SparseRows
from cptron.corpus.step import ShardFeatures, Tally

_SCALE = 1 << 20
"""Log weights of n-grams are multiples of 2^-20 nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The target, and how much is taken."""

    target: tuple[str, ...]
    """Files with documents of the target: JSONL, text, Parquet, ..., as for inputs."""
    target_text_key: str = ""
    """Key or column of their text; empty to find it."""
    budget_share: float = 0.1
    """Share of what comes, in `unit`, that is kept."""
    budget: int = 0
    """How much is kept, in `unit`, in place of a share; 0 for `budget_share`."""
    unit: Unit = "bytes"
    """`bytes` of text, `tokens` or `documents`."""
    tokenizer: str = ""
    """Directory or file of the tokenizer, for the unit `tokens`."""
    sampling: Literal["hard", "soft"] = "soft"
    """`soft`: drawn without replacement by the weights (Gumbel top-k, as published); `hard`: the largest weights."""
    weight: Literal["mean", "sum"] = "mean"
    """Log weight of a document: the mean over its n-grams, times `mean_ngrams`; or their sum, as published for pieces
    of equal length, which among whole documents favours long ones."""
    mean_ngrams: float = 100.0
    """For `mean`: how much the weights count beside the noise of `soft`, as if documents had so many n-grams."""
    buckets: int = 10_000
    """That n-grams are hashed into."""
    longest: int = 2
    """Words of the longest n-gram."""
    smoothing: float = 1.0
    """Added to every count of a bucket."""


class Step(ScoredStep[Config]):
    """See the module."""

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not config.target:
            return f"target has {len(config.target)} elements, must name a file at least; add one"
        if not (1 <= config.buckets <= MOST_BUCKETS and 1 <= config.longest <= 5):
            return (
                f"buckets {config.buckets} must be 1 to {MOST_BUCKETS} and longest {config.longest} 1 to 5; "
                "correct them"
            )
        if not (config.smoothing > 0 and config.mean_ngrams > 0):
            return f"smoothing {config.smoothing} and mean_ngrams {config.mean_ngrams} must be above 0; raise them"
        return budget_problem(config)

    def files(self) -> list[Path]:
        """See `Step`."""
        return [*example_files(self.config.target), *tokenizer_files(self.config)]

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """Counts of n-grams, size and random number of each document."""
        sizes, uniform, rows = Sizes(self.config), [], []
        for document in documents:
            sizes.add(document)
            uniform.append(draw(document.id, self.seed))
            rows.append(bucket_counts(document.text, self.config.buckets, self.config.longest))
        arrays = {"sizes": sizes.array(), "uniform": np.array(uniform, np.float64)}
        save_arrays(path, {}, arrays | SparseRows.of(rows).as_arrays())

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """Three passes over the features, one shard in memory at a time: counts, weights, counts of what is chosen."""
        config = self.config
        target = self._target()
        raw = np.zeros(config.buckets, np.int64)
        for shard in shards:
            raw += SparseRows.from_arrays(load_features(shard)).total(config.buckets)
        ratios = np.rint(_SCALE * (np.log(self._smooth(target)) - np.log(self._smooth(raw)))).astype(np.int64)
        scores, sizes, uniform = self._scores(shards, ratios)
        keys = scores + gumbel(uniform) if config.sampling == "soft" else scores
        codes, budget = choose(keys, sizes, config)
        self.write_decision(shards, decided, codes, scores)
        before, after = self._divergences(shards, target, raw, codes)
        write_figures(decided, {
            f"budget_{config.unit}": budget,
            f"selected_{config.unit}": int(sizes[codes == 0].sum()),
            "target_ngrams": int(target.sum()),
            "kl_target_raw_nats": before,
            "kl_target_selected_nats": after,
            "kl_reduction_nats": before - after,
        })  # fmt: skip

    def _target(self) -> NDArray[np.int64]:
        config = self.config
        counts = np.zeros(config.buckets, np.int64)
        for text in examples(config.target, config.target_text_key, "target"):
            buckets, found = bucket_counts(text, config.buckets, config.longest)
            counts[buckets] += found
        return counts

    def _smooth(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        smoothed = counts + self.config.smoothing
        return np.asarray(smoothed / smoothed.sum())

    def _scores(
        self, shards: Sequence[ShardFeatures], ratios: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Log weights in nats, sizes and random numbers of all documents."""
        parts: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]] = []
        for shard in shards:
            arrays = load_features(shard)
            rows = SparseRows.from_arrays(arrays)
            sums = rows.row_sums(rows.counts * ratios[rows.buckets]) / _SCALE
            if self.config.weight == "mean":
                sums *= self.config.mean_ngrams / np.maximum(1, rows.row_sums(rows.counts.astype(np.int64)))
            parts.append((sums, arrays["sizes"], arrays["uniform"]))
        scores, sizes, uniform = zip(*parts, strict=True) if parts else ([np.zeros(0)],) * 3
        return np.concatenate(scores), np.concatenate(sizes).astype(np.int64), np.concatenate(uniform)

    def _divergences(
        self,
        shards: Sequence[ShardFeatures],
        target: NDArray[np.int64],
        raw: NDArray[np.int64],
        codes: NDArray[np.uint8],
    ) -> tuple[float, float]:
        """Kullback-Leibler divergence of the target from all documents, and from those that were chosen, in nats."""
        chosen, start = np.zeros_like(raw), 0
        for shard in shards:
            mine = codes[start : start + shard.num_documents] == 0
            chosen += SparseRows.from_arrays(load_features(shard)).total(self.config.buckets, mine)
            start += shard.num_documents
        p = self._smooth(target)
        return tuple(float(np.sum(p * np.log(p / self._smooth(counts)))) for counts in (raw, chosen))  # type: ignore[return-value]
