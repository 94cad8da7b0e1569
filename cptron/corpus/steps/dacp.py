"""Selects documents for a task or for a domain: ETS and ETA of efficient DACP (Xie et al. 2023, 2311.08545).

Place in the flow: a corpus step; behind deduplication, and behind `perplexity` where novelty counts.
Invariant: the score of a document depends on the whole corpus and on nothing else; random numbers come from ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import Document, draw
from cptron.corpus.select.array_file import save_arrays
from cptron.corpus.select.budget import (
    Sizes,
    Unit,
    budget_problem,
    choose,
    efraimidis_spirakis,
    quantile_ranks,
    tokenizer_files,
)
from cptron.corpus.select.causal_lm import Device
from cptron.corpus.select.embedding import Encoder
from cptron.corpus.select.examples import example_files, examples
from cptron.corpus.select.scored import ScoredStep, load_features, write_figures
from cptron.corpus.select.similarity import (
    BUCKETS,
    cosines,
    inverse_frequencies,
    mean_direction,
    vector_cosines,
    words_of,
)
from cptron.corpus.select.sparse import SparseRows
from cptron.corpus.select.tags import PACKAGES, Tagger, TaggerName, entropy_nats, open_tagger, spacy_files
from cptron.corpus.step import ShardFeatures, Tally
from cptron.corpus.steps.perplexity import model_files
from cptron.errors import DataError

Measured = Literal["similarity", "novelty", "diversity"]
METHODS: dict[str, tuple[Measured, ...]] = {
    "ets": ("similarity",),
    "eta_novelty": ("novelty",),
    "eta_diversity": ("diversity",),
    "eta_com": ("novelty", "diversity"),
    "ets_com": ("similarity", "novelty", "diversity"),
}
"""What each measures; of several, the mean of the quantile ranks counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Method, what it measures with, and how much is taken."""

    method: Literal["ets", "eta_novelty", "eta_diversity", "eta_com", "ets_com"]
    """`ets`: likeness to examples of the task; `eta_novelty`: loss under a small language model; `eta_diversity`:
    entropy of the classes of words; `eta_com`, `ets_com`: mean of the quantile ranks of the last two, of all three."""
    task: tuple[str, ...] = ()
    """Files with examples of the task, for `ets` and `ets_com`; as for inputs."""
    task_text_key: str = ""
    """Key or column of their text; empty to find it."""
    embedding: Literal["tfidf", "encoder"] = "tfidf"
    """Vectors whose cosine is likeness: of hashed words with TF-IDF, or of `encoder`."""
    encoder: str = ""
    """Directory of a Hugging Face encoder."""
    device: Device = "cpu"
    """Where the encoder runs."""
    novelty_key: str = "perplexity_nats_per_token"
    """Of the metadata: the loss that a `perplexity` step before wrote, under the surrogate model."""
    tagger: TaggerName = "shapes"
    """Classes of words: parts of speech by `nltk` (its data must be there) or `spacy`; `shapes`, without any model, by
    capitals, digits and endings, which is no part of speech but goes with it."""
    tagger_model: str = ""
    """Installed spaCy model, for `spacy`."""
    budget_share: float = 0.1
    """Share of what comes, in `unit`, that is kept."""
    budget: int = 0
    """How much is kept, in `unit`, in place of a share; 0 for `budget_share`."""
    unit: Unit = "bytes"
    """`bytes` of text, `tokens` or `documents`."""
    tokenizer: str = ""
    """Directory or file of the tokenizer, for the unit `tokens`."""
    sampling: Literal["hard", "soft"] = "hard"
    """`hard`: the largest scores; `soft`: drawn without replacement with the quantile rank of the score as weight."""


class Step(ScoredStep[Config]):
    """See the module."""

    def __init__(self, name: str, config: Config, seed: int) -> None:
        super().__init__(name, config, seed)
        self._measured = METHODS[config.method]
        tagger = PACKAGES[config.tagger] if "diversity" in self._measured else ()
        tagger = (*tagger, config.tagger_model) if config.tagger_model else tagger
        self.packages = (*tagger, *(("torch", "transformers") if config.encoder else ()))  # type: ignore[misc]

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        measured = METHODS[config.method]
        if ("similarity" in measured) != bool(config.task):
            return (
                f"task has {len(config.task)} elements, must have some for ets and ets_com alone; correct it"
            )
        if (config.embedding == "encoder") != bool(config.encoder) or (config.encoder and not config.task):
            return f"encoder {config.encoder!r} must be given for embedding encoder, and not else; correct it"
        if (config.tagger == "spacy") != bool(config.tagger_model):
            return f"tagger_model {config.tagger_model!r} must be given for tagger spacy, and not else; correct it"
        return budget_problem(config)

    def files(self) -> list[Path]:
        """See `Step`. Raises DataError where a file is not there."""
        config = self.config
        encoder = model_files(Path(config.encoder)) if config.encoder else []
        if config.encoder and not encoder:
            raise DataError(
                f"encoder {config.encoder} holds {len(encoder)} files, must be a model; correct it"
            )
        task = example_files(config.task) if config.task else []
        return [*task, *encoder, *tokenizer_files(config), *spacy_files(config.tagger_model, self.name)]

    def open(self) -> None:
        """See `Step`."""
        super().open()
        config = self.config
        self._encoder = Encoder(Path(config.encoder), config.device) if config.encoder else None
        if "diversity" in self._measured:
            self._tagger: Tagger = open_tagger(config.tagger, config.tagger_model, self.name)

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """Whatever the method measures of a document alone; size and random number. Raises DataError for a document
        without its loss."""
        sizes, uniform = Sizes(self.config), []
        found: dict[str, list[Any]] = {name: [] for name in self._measured}
        for document in documents:
            sizes.add(document)
            uniform.append(draw(document.id, self.seed))
            for name, values in found.items():
                values.append(self._of(document, name))
        arrays: dict[str, NDArray[Any]] = {"sizes": sizes.array(), "uniform": np.array(uniform, np.float64)}
        for name, values in found.items():
            if name == "similarity" and self._encoder is None:
                arrays |= SparseRows.of(values).as_arrays()
            elif name == "similarity":
                arrays["vectors"] = np.array(values, np.float32)
            else:
                arrays[name] = np.array(values, np.float64)
        save_arrays(path, {}, arrays)

    def _of(self, document: Document, name: str) -> Any:
        if name == "diversity":
            return entropy_nats(self._tagger(document.text))
        if name == "similarity":
            return self._encoder.vector(document.text) if self._encoder else words_of(document.text)
        value = document.meta.get(self.config.novelty_key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"step {self.name}: {document.id} has {self.config.novelty_key} {value!r}, must be a number; put a "
                "step perplexity with sample 1.0 before"
            )
        return value

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """Ranks, their mean, and what the budget buys."""
        sizes, uniform, values = self._values(shards)
        # Six digits: what a machine's own rounding leaves beyond them must not decide.
        values = {name: np.round(found, 6) for name, found in values.items()}
        ranks = {name: quantile_ranks(found) for name, found in values.items()}
        several = len(values) > 1
        scores = np.mean(list(ranks.values()), axis=0) if several else next(iter(values.values()))
        soft = self.config.sampling == "soft"
        keys = efraimidis_spirakis(uniform, quantile_ranks(scores)) if soft else scores
        codes, budget = choose(keys, sizes, self.config)
        self.write_decision(shards, decided, codes, scores)
        kept = codes == 0
        figures: dict[str, float | int] = {
            f"budget_{self.config.unit}": budget,
            f"selected_{self.config.unit}": int(sizes[kept].sum()),
        }
        for name, found in values.items():
            if len(found):
                figures |= {f"mean_{name}": float(found.mean())}
            if kept.any():
                figures |= {f"mean_{name}_selected": float(found[kept].mean())}
        write_figures(decided, figures)

    def _values(
        self, shards: Sequence[ShardFeatures]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Sizes, random numbers and measures of all documents."""
        likeness = self._likeness(shards) if "similarity" in self._measured else {}
        sizes, uniform = [np.zeros(0, np.int64)], [np.zeros(0)]
        found: dict[str, list[NDArray[np.float64]]] = {name: [np.zeros(0)] for name in self._measured}
        for shard in shards:
            arrays = load_features(shard)
            sizes.append(arrays["sizes"])
            uniform.append(arrays["uniform"])
            for name, values in found.items():
                values.append(likeness[shard.shard] if name == "similarity" else arrays[name])
        return (
            np.concatenate(sizes),
            np.concatenate(uniform),
            {name: np.concatenate(values) for name, values in found.items()},
        )

    def _likeness(self, shards: Sequence[ShardFeatures]) -> dict[int, NDArray[np.float64]]:
        """Cosines to the mean of the task's examples, by shard."""
        texts = examples(self.config.task, self.config.task_text_key, "task")
        if self._encoder is not None:
            vectors = [self._encoder.vector(text).astype(np.float64) for text in texts]
            units = [vector / norm for vector in vectors if (norm := float(np.sqrt((vector**2).sum())))]
            direction = np.mean(units, axis=0)
            return {
                shard.shard: vector_cosines(_vectors(shard, len(direction)), direction) for shard in shards
            }
        counts, documents = np.zeros(BUCKETS, np.int64), 0
        for shard in shards:
            counts += np.bincount(load_features(shard)["buckets"], minlength=BUCKETS)
            documents += shard.num_documents
        inverse = inverse_frequencies(counts, documents)
        direction = mean_direction(texts, inverse)
        return {
            shard.shard: cosines(SparseRows.from_arrays(load_features(shard)), inverse, direction)
            for shard in shards
        }


def _vectors(shard: ShardFeatures, width: int) -> NDArray[np.float32]:
    return np.asarray(load_features(shard)["vectors"], np.float32).reshape(-1, width)
