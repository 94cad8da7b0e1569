"""A corpus step whose decision is a verdict and a score for each document.

Place in the flow: base of DSIR and DACP. Invariant: a document that stays carries its score in its metadata, one that
goes shows it with the samples of what was dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.sealed import RESTART
from cptron.corpus.select.array_file import load_arrays, save_arrays
from cptron.corpus.select.budget import REASONS, BudgetSettings, Sizes, by_shard
from cptron.corpus.step import FIGURES, CorpusStep, ShardFeatures, Tally, each_verdict
from cptron.errors import DataError

C = TypeVar("C", bound=BudgetSettings)


def write_figures(decided: Path, figures: Mapping[str, float | int]) -> None:
    """What a decision says of itself, for the report: numbers by name, six digits of them."""
    rounded = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in figures.items()
    }
    (decided / FIGURES).write_text(json.dumps(rounded) + "\n")


class ScoredStep(CorpusStep[C]):
    """See the module."""

    reasons = REASONS

    def open(self) -> None:
        """See `Step`. Raises DataError for a tokenizer that cannot be used."""
        Sizes(self.config)

    def write_decision(
        self,
        shards: Sequence[ShardFeatures],
        decided: Path,
        codes: NDArray[np.uint8],
        scores: NDArray[np.float64],
    ) -> None:
        """Record verdicts and scores of all documents, in order."""
        lengths = [shard.num_documents for shard in shards]
        for shard, (mine, values) in zip(shards, by_shard(lengths, codes, scores), strict=True):
            self.write_verdicts(decided, shard, mine.astype(np.uint8))
            save_arrays(_scores_path(decided, shard.shard), {}, {"scores": values})

    def applied(self, decided: Path, shard: int) -> Callable[[Document, Tally], Result]:
        """See `CorpusStep`."""
        codes = each_verdict(decided, shard)
        scores = iter(load_arrays(_scores_path(decided, shard), RESTART)[1]["scores"].tolist())
        key = f"{self.name}_score"

        def verdict(document: Document, tally: Tally) -> Result:
            code, score = next(codes), round(next(scores), 4)
            if code:
                return Dropped(self.reasons[code - 1], f"score {score}")
            return document.with_meta(**{key: score})

        return verdict


def _scores_path(decided: Path, shard: int) -> Path:
    return decided / f"{shard:05d}.scores"


def load_features(shard: ShardFeatures) -> dict[str, NDArray[Any]]:
    """Arrays of a shard's features. Raises DataError where they are not one a document."""
    arrays = load_arrays(shard.path, RESTART)[1]
    if len(arrays["sizes"]) != shard.num_documents:
        raise DataError(
            f"{shard.path} has {len(arrays['sizes'])} of {shard.num_documents} documents, must have all; {RESTART}"
        )
    return arrays
