"""Loss of each document under a language model, over the whole document, and limits of it.

Place in the flow: a map step. Its losses go into the metadata, where `quantile` (buckets, tails) and `dacp` (novelty)
read them. Invariant: each token is predicted once, wherever it stands; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cptron.corpus.document import Document, Dropped, Result, draw
from cptron.corpus.optional import optional_module
from cptron.corpus.select.causal_lm import CausalScorer, Device, DType, Score
from cptron.corpus.select.limits import Measure, limits_problem, within_limits
from cptron.corpus.step import MapStep, Tally
from cptron.corpus.words import tokens_of
from cptron.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Model and limits."""

    model: str
    """Directory of a Hugging Face causal model with its tokenizer, or a KenLM file."""
    engine: Literal["hugging_face", "kenlm"] = "hugging_face"
    """What the model is. KenLM is given words and marks of punctuation in lower case, a line of text at a time."""
    measure: Measure = "nats_per_token"
    """What the limits are of; `bits_per_byte` compares between tokenizers and languages."""
    least: float = 0.0
    """Documents below are dropped: repeated or boilerplate text."""
    most: float = 0.0
    """Documents above are dropped: noise; 0 for no limit."""
    sample: float = 1.0
    """Share of the documents that is measured; the others pass unmeasured, and are counted."""
    window: int = 1024
    """Tokens that the model sees at once, or fewer where it has fewer positions."""
    stride: int = 512
    """Tokens from one window to the next: the others of a window are there as context."""
    max_windows: int = 0
    """Of a document, spread over it, that are measured; 0 for all."""
    batch_tokens: int = 8192
    """Padded tokens of a batch: memory grows with it, times the size of the vocabulary."""
    device: Device = "cpu"
    """Where the model runs."""
    dtype: DType = "float32"
    """Of the weights."""
    threads: int = 1
    """Of a process on a CPU. Part of the settings: other threads give other last digits."""


class Step(MapStep[Config]):
    """See the module."""

    batch_documents = 64

    def __init__(self, name: str, config: Config, seed: int) -> None:
        super().__init__(name, config, seed)
        self.packages = ("kenlm",) if config.engine == "kenlm" else ("torch", "transformers")  # type: ignore[misc]

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not 0 < config.sample <= 1:
            return f"sample {config.sample} must be above 0 and at most 1; correct it"
        if not 0 < config.stride < config.window:
            return f"stride {config.stride} must be 1 at least and below window {config.window}; correct it"
        if config.max_windows < 0 or config.batch_tokens < 1 or config.threads < 1:
            return (
                f"max_windows {config.max_windows}, batch_tokens {config.batch_tokens} and threads {config.threads} "
                "must be at least 0, 1 and 1; raise them"
            )
        return limits_problem(config)

    def files(self) -> list[Path]:
        """See `Step`. Raises DataError where the model is not there."""
        path = Path(self.config.model)
        found = model_files(path) if self.config.engine == "hugging_face" else [path]
        if not found:
            raise DataError(
                f"model {path} holds {len(found)} files, must be a directory with a model; correct it"
            )
        return found

    def open(self) -> None:
        """See `Step`."""
        config = self.config
        if config.engine == "kenlm":
            self._kenlm = _kenlm(config.model, self.name)
            return
        self._scorer = CausalScorer(
            Path(config.model),
            device=config.device,
            dtype=config.dtype,
            window=config.window,
            stride=config.stride,
            most_windows=config.max_windows,
            batch_tokens=config.batch_tokens,
            threads=config.threads,
        )

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        return self.apply_batch([document], tally)[0]

    def apply_batch(self, documents: Sequence[Document], tally: Tally) -> list[Result]:
        """See `MapStep`."""
        share = self.config.sample
        wanted = [share == 1 or draw(document.id, self.seed) < share for document in documents]
        texts = [document.text for document, asked in zip(documents, wanted, strict=True) if asked]
        scores = iter(self._scores(texts) if texts else [])
        return [
            self._result(document, next(scores) if asked else None, asked, tally)
            for document, asked in zip(documents, wanted, strict=True)
        ]

    def _result(self, document: Document, score: Score | None, asked: bool, tally: Tally) -> Result:
        if not asked:
            tally["not_sampled"] += 1
            return document
        if score is None:
            return Dropped("nothing_to_predict")
        tally["tokens_measured"] += score.tokens
        return within_limits(document, self.name, self.config, score.nats_per_token, score.bits_per_byte)

    def _scores(self, texts: Sequence[str]) -> list[Score | None]:
        return (
            self._scorer.scores(texts)
            if self.config.engine == "hugging_face"
            else list(map(self._by_kenlm, texts))
        )

    def _by_kenlm(self, text: str) -> Score | None:
        lines = [words for line in text.lower().splitlines() if (words := tokens_of(line))]
        nats = -math.log(10) * sum(self._kenlm.score(" ".join(words)) for words in lines)
        return Score(nats, sum(len(words) + 1 for words in lines), len(text.encode())) if lines else None


def _kenlm(model: str, step: str) -> Any:
    module = optional_module("kenlm", "kenlm", step)
    try:
        return module.Model(model)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{model} must be a KenLM model ({' '.join(str(error).split())[:200]}); make it again"
        ) from None


def model_files(directory: Path) -> list[Path]:
    """Weights, settings and tokenizer of a Hugging Face directory; empty where there are none."""
    suffixes = (".json", ".safetensors", ".model", ".txt", ".jinja")  # pickled weights are not loaded
    return [path for path in sorted(directory.glob("*")) if path.suffix in suffixes and path.is_file()]
