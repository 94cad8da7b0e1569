"""Loss of each document under an n-gram model that is trained on a reference, and limits of it.

Place in the flow: a corpus step: the model is trained once, then every shard is measured by it. Losses go into the
metadata, for `quantile` and `dacp`. Invariant: the reference alone makes the model; no document of the corpus does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.sealed import RESTART
from cptron.corpus.select.examples import example_files, examples
from cptron.corpus.select.kneser_ney import NgramModel
from cptron.corpus.select.limits import Measure, limits_problem, within_limits
from cptron.corpus.select.scored import write_figures
from cptron.corpus.step import CorpusStep, ShardFeatures, Tally

MODEL = "ngrams.model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Reference and limits."""

    reference: tuple[str, ...]
    """Files with good text of the kind that is wanted, as for inputs; tens of megabytes are enough."""
    reference_text_key: str = ""
    """Key or column of their text; empty to find it."""
    order: int = 3
    """Words of the longest n-gram."""
    min_count: int = 2
    """Rarer words of the reference are unknown words."""
    measure: Measure = "bits_per_byte"
    """What the limits are of."""
    least: float = 0.0
    """Documents below are dropped."""
    most: float = 0.0
    """Documents above are dropped; 0 for no limit."""


class Step(CorpusStep[Config]):
    """See the module."""

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not config.reference:
            return f"reference has {len(config.reference)} elements, must name a file at least; add one"
        if not 1 <= config.order <= 6 or config.min_count < 1:
            return f"order {config.order} must be 1 to 6 and min_count {config.min_count} 1 or more; correct them"
        return limits_problem(config)

    def files(self) -> list[Path]:
        """See `Step`."""
        return example_files(self.config.reference)

    def open(self) -> None:
        """See `Step`."""
        self._model: NgramModel | None = None

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """None: the documents have no part in the model."""
        path.write_bytes(b"")

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """Train the model."""
        config = self.config
        texts = examples(config.reference, config.reference_text_key, "reference")
        model = NgramModel.train(texts, config.order, config.min_count)
        model.save(decided / MODEL, {"format": "cptron n-grams"})
        counts = {f"ngrams_of_{length}": count for length, count in enumerate(model.num_ngrams, 1)}
        write_figures(decided, {"words": model.num_words, **counts})

    def applied(self, decided: Path, shard: int) -> Callable[[Document, Tally], Result]:
        """See `CorpusStep`."""
        model = self._model = self._model or NgramModel.load(decided / MODEL, RESTART)

        def measured(document: Document, tally: Tally) -> Result:
            score = model.score(document.text)
            if score is None:
                return Dropped("nothing_to_predict")
            tally["words_measured"] += score.tokens
            return within_limits(document, self.name, self.config, score.nats_per_token, score.bits_per_byte)

        return measured
