"""Keeps the middle of a number that a step before wrote into the metadata, and names buckets: head, middle, tail.

Place in the flow: a corpus step behind `perplexity`, `ngram_perplexity` or anything else that measures.
Invariant: a document's fate depends on its rank among all documents of its group, equal values alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.sealed import RESTART
from cptron.corpus.select.array_file import load_arrays, save_arrays
from cptron.corpus.select.budget import by_shard, quantile_ranks
from cptron.corpus.select.scored import write_figures
from cptron.corpus.step import CorpusStep, ShardFeatures, Tally, each_verdict
from cptron.errors import DataError

BUCKETS = ("head", "middle", "tail", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Which number, and which part of it stays."""

    key: str
    """Of the metadata: `perplexity_bits_per_byte` is what a step named `perplexity` writes."""
    lowest: float = 0.0
    """Share of the documents, from the smallest number on, that is dropped."""
    highest: float = 1.0
    """Documents beyond this share are dropped."""
    by: str = ""
    """Key of the metadata (`language`), or `source`: shares are of each group by itself; empty for the whole corpus."""
    head: float = 1 / 3
    """Share of the documents that are `head` in the metadata's `NAME_bucket`: the smallest numbers."""
    tail: float = 2 / 3
    """Share from which on they are `tail`."""
    missing: Literal["keep", "drop"] = "keep"
    """What becomes of documents without the number, such as those that `perplexity` did not sample."""


class Step(CorpusStep[Config]):
    """See the module."""

    reasons = ("below_quantile", "above_quantile", "no_number")

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not 0 <= config.lowest < config.highest <= 1:
            return f"lowest {config.lowest} must be below highest {config.highest}, both 0 to 1; correct them"
        if not 0 <= config.head <= config.tail <= 1:
            return f"head {config.head} must not be above tail {config.tail}, both 0 to 1; correct them"
        return ""

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """Number (NaN for none) and group of each document."""
        values, groups, numbers = [], [], dict[str, int]()
        for document in documents:
            values.append(_number(document.meta.get(self.config.key)))
            group = document.source if self.config.by == "source" else document.meta.get(self.config.by, "")
            groups.append(
                numbers.setdefault(group if isinstance(group, str) else json.dumps(group), len(numbers))
            )
        arrays = {"values": np.array(values, np.float64), "groups": np.array(groups, np.int64)}
        save_arrays(path, {"names": list(numbers)}, arrays)

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """Rank within groups."""
        values, groups, names = _all_of(shards)
        there = ~np.isnan(values)
        if len(values) and not there.any():
            raise DataError(
                f"step {self.name}: {int(there.sum())} documents have {self.config.key} in their metadata, some must; "
                "put the step that writes it before"
            )
        ranks = np.full(len(values), np.nan)
        figures: dict[str, float | int] = {"documents_without_number": int((~there).sum())}
        order = np.argsort(
            np.where(there, groups, len(names)), kind="stable"
        )  # documents of a group in a row
        edges = np.searchsorted(groups[order][: int(there.sum())], np.arange(len(names) + 1))
        for name, (first, stop) in zip(names, pairwise(edges.tolist()), strict=True):
            mine = order[first:stop]
            ranks[mine] = quantile_ranks(values[mine])
            figures |= self._thresholds(name, values[mine])
        codes, buckets = self._codes(ranks)
        lengths = [shard.num_documents for shard in shards]
        for shard, (verdicts, named) in zip(shards, by_shard(lengths, codes, buckets), strict=True):
            self.write_verdicts(decided, shard, verdicts.astype(np.uint8))
            save_arrays(decided / f"{shard.shard:05d}.buckets", {}, {"buckets": named})
        write_figures(decided, figures)

    def _codes(self, ranks: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Verdicts and numbers of buckets."""
        config, none = self.config, np.isnan(ranks)
        codes = np.select(
            [ranks < config.lowest, ranks > config.highest, none & (config.missing == "drop")], [1, 2, 3]
        )
        buckets = np.select([none, ranks <= config.head, ranks < config.tail], [3, 0, 1], 2)
        return codes.astype(np.uint8), buckets.astype(np.uint8)

    def _thresholds(self, name: str, values: NDArray[np.float64]) -> dict[str, float]:
        if not len(values):
            return {}
        shares = {"lowest": self.config.lowest, "highest": self.config.highest}
        prefix = f"{name} " if name else ""
        return {f"{prefix}{self.config.key} at {what} {share:g}": float(np.quantile(values, share))
                for what, share in shares.items()}  # fmt: skip

    def applied(self, decided: Path, shard: int) -> Callable[[Document, Tally], Result]:
        """See `CorpusStep`."""
        codes = each_verdict(decided, shard)
        buckets = iter(load_arrays(decided / f"{shard:05d}.buckets", RESTART)[1]["buckets"].tolist())

        def verdict(document: Document, tally: Tally) -> Result:
            code, bucket = next(codes), BUCKETS[next(buckets)]
            tally[bucket or "no_number"] += 1
            if code:
                return Dropped(
                    self.reasons[code - 1], f"{self.config.key} {document.meta.get(self.config.key)}"
                )
            return document.with_meta(**{f"{self.name}_bucket": bucket}) if bucket else document

        return verdict


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def _all_of(
    shards: Sequence[ShardFeatures],
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Values and groups of all documents, and the groups' names."""
    numbers: dict[str, int] = {}
    values, groups = [np.zeros(0)], [np.zeros(0, np.int64)]
    for shard in shards:
        about, arrays = load_arrays(shard.path, RESTART)
        here = np.array([numbers.setdefault(name, len(numbers)) for name in about["names"]], np.int64)
        values.append(arrays["values"])
        groups.append(here[arrays["groups"]])
    return np.concatenate(values), np.concatenate(groups), list(numbers)
