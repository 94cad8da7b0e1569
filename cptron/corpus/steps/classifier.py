"""Keeps documents of a domain, or good ones, by a classifier that is trained from examples.

Place in the flow: a corpus step: the classifier is trained once, then every shard is classified by it.
Invariant: the examples alone make the classifier; its precision and recall are measured on examples it has not seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.optional import optional_module
from cptron.corpus.sealed import RESTART
from cptron.corpus.select.examples import example_files, examples
from cptron.corpus.select.linear import MOST_NGRAM, LinearClassifier, Training, train
from cptron.corpus.select.ngrams import MOST_BUCKETS
from cptron.corpus.select.scored import write_figures
from cptron.corpus.step import CorpusStep, ShardFeatures, Tally
from cptron.durable import make_directory, replacing
from cptron.errors import DataError

MODEL = "linear.classifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Examples or a model, and what becomes of documents."""

    positive: tuple[str, ...] = ()
    """Files with documents as they are wanted, as for inputs: hundreds at least."""
    negative: tuple[str, ...] = ()
    """Files with documents as they are not, such as any of the web."""
    text_key: str = ""
    """Key or column of their text; empty to find it."""
    model: str = ""
    """In place of examples: a classifier that was saved, or a fastText model."""
    engine: Literal["linear", "fasttext"] = "linear"
    """What the model is; one that is trained here is `linear`: logistic regression on hashed n-grams of words."""
    label: str = ""
    """Of fastText's labels, without `__label__`, the one whose probability is the score."""
    threshold: float = 0.0
    """From which score on (0 to 1) a document is of the domain; 0: what training found for `min_precision`."""
    min_precision: float = 0.9
    """Training takes the lowest threshold with this precision on held-out examples, and so the highest recall. A corpus
    with fewer documents of the domain than the examples has a lower precision."""
    held_out: float = 0.2
    """Share of the examples that the classifier does not see, to measure it."""
    action: Literal["drop", "mark"] = "drop"
    """`mark` keeps all documents; the score is in the metadata as `NAME_score` in any case."""
    save: str = ""
    """Where the trained classifier is put too, for other curations."""
    buckets: int = MOST_BUCKETS
    """That n-grams are hashed into."""
    longest: int = 2
    """Words of the longest n-gram."""
    penalty: float = 1e-5
    """Of large weights: larger for few or noisy examples."""


class Step(CorpusStep[Config]):
    """See the module."""

    def __init__(self, name: str, config: Config, seed: int) -> None:
        super().__init__(name, config, seed)
        self.packages = ("fasttext-predict",) if config.engine == "fasttext" else ()  # type: ignore[misc]

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if bool(config.model) == bool(config.positive) or bool(config.positive) != bool(config.negative):
            return "positive, negative and model: give both kinds of examples, or a model alone; correct them"
        if config.engine == "fasttext" and not (config.model and config.label and config.threshold):
            return f"model {config.model!r}, label and threshold must be given for fasttext; add them"
        if config.save and config.model:
            return f"save {config.save} is for a classifier that is trained here; remove it"
        if not (0 <= config.threshold <= 1 and 0 < config.min_precision <= 1 and 0 < config.held_out < 1):
            return (
                f"threshold {config.threshold}, min_precision {config.min_precision} and held_out {config.held_out} "
                "must be within 0 to 1; correct them"
            )
        if not (
            1 <= config.buckets <= MOST_BUCKETS and 1 <= config.longest <= MOST_NGRAM and config.penalty > 0
        ):
            return (
                f"buckets {config.buckets} must be 1 to {MOST_BUCKETS}, longest {config.longest} 1 to {MOST_NGRAM}, "
                f"penalty {config.penalty} above 0; correct them"
            )
        return ""

    def files(self) -> list[Path]:
        """See `Step`."""
        config = self.config
        return [Path(config.model)] if config.model else example_files((*config.positive, *config.negative))

    def open(self) -> None:
        """See `Step`. Raises DataError for a model that cannot be used."""
        config = self.config
        self._loaded: LinearClassifier | None = None
        if config.engine == "fasttext":
            self._fasttext = _fasttext(config.model, self.name)
        elif config.model:
            self._loaded = LinearClassifier.load(Path(config.model), "train it again")

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """None: the documents have no part in the classifier."""
        path.write_bytes(b"")

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """Train, unless there is a model. Raises DataError where the examples do not suffice."""
        config = self.config
        if config.engine == "fasttext":
            write_figures(decided, {"threshold": config.threshold})
            return
        model = self._loaded or self._trained()
        model.save(decided / MODEL)
        if config.save:
            _copy(decided / MODEL, Path(config.save))
        figures = {f"held_out_{name}": value for name, value in asdict(model.quality).items()}
        figures["threshold_of_training"] = figures.pop("held_out_threshold")
        write_figures(decided, {"threshold": config.threshold or model.quality.threshold, **figures})

    def _trained(self) -> LinearClassifier:
        config = self.config
        how = Training(
            buckets=config.buckets,
            longest=config.longest,
            penalty=config.penalty,
            held_out=config.held_out,
            min_precision=config.min_precision,
            seed=self.seed,
        )
        positives = examples(config.positive, config.text_key, "positive")
        return train(positives, examples(config.negative, config.text_key, "negative"), how)

    def applied(self, decided: Path, shard: int) -> Callable[[Document, Tally], Result]:
        """See `CorpusStep`."""
        config, threshold = self.config, self.config.threshold
        if config.engine == "fasttext":
            score: Callable[[str], float] = self._by_fasttext
        else:
            model = self._loaded = self._loaded or LinearClassifier.load(decided / MODEL, RESTART)
            score, threshold = model.score, threshold or model.quality.threshold

        def classified(document: Document, tally: Tally) -> Result:
            value = round(score(document.text), 6)
            tally["positive" if value >= threshold else "negative"] += 1
            if value < threshold and config.action == "drop":
                return Dropped("other_domain", f"score {value}")
            return document.with_meta(**{f"{self.name}_score": value})

        return classified

    def _by_fasttext(self, text: str) -> float:
        labels, scores = self._fasttext.predict(" ".join(text.split()), k=-1)
        found = dict(zip(labels, scores, strict=True))
        return min(1.0, float(found.get(f"__label__{self.config.label}", 0.0)))


def _fasttext(model: str, step: str) -> Any:
    module = optional_module("fasttext", "fasttext-predict", step)
    try:
        return module.load_model(model)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise DataError(f"{model} must be a fastText model ({error}); train it again") from None


def _copy(made: Path, final: Path) -> None:
    make_directory(final.parent)
    with replacing(final) as partial:
        shutil.copyfile(made, partial)
