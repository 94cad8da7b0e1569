"""Which language a document is in, and only documents in the right ones.

Place in the flow: a map step; early, since it lets later steps be right about words. It writes `language` and
`language_score` into the metadata. Invariant: nothing is downloaded; the label depends on the text and the model alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.language_engines import ENGINES, PACKAGES, UNKNOWN
from cptron.corpus.step import MapStep, Tally
from cptron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Who tells languages, and which are kept."""

    engine: Literal["fasttext", "py3langid", "lingua", "script"] = "py3langid"
    """`fasttext`: a model file (lid.176, GlotLID), the best; `py3langid`, `lingua`: models in their packages; `script`:
    the Unicode script that most letters are of (`Latn`, `Deva`), fast and without any model."""
    model: str = ""
    """File of the fastText model."""
    keep: tuple[str, ...] = ()
    """Labels that are kept, as the engine writes them; empty to keep all, labelled."""
    threshold: float = 0.65
    """Lower scores are dropped, whatever the label; for `script`, the share of letters."""
    max_characters: int = 5_000
    """Of a document, that are looked at; 0 for all."""


class Step(MapStep[Config]):
    """See the module."""

    def __init__(self, name: str, config: Config, seed: int) -> None:
        super().__init__(name, config, seed)
        self.packages = PACKAGES[config.engine]  # type: ignore[misc]

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if (config.engine == "fasttext") != bool(config.model):
            return (
                f"model {config.model!r} must name a file for fasttext, and be empty for others; correct it"
            )
        if not 0 <= config.threshold <= 1:
            return f"threshold {config.threshold} must be 0 to 1; correct it"
        return ""

    def files(self) -> list[Path]:
        """See `Step`."""
        return [Path(self.config.model)] if self.config.model else []

    def open(self) -> None:
        """See `Step`. Raises ConfigError for a label that the engine never says: it would keep nothing."""
        engine = ENGINES[self.config.engine](self.name, self.config.model)
        self._label: Callable[[str], tuple[str, float]] = engine.label
        labels = {*engine.labels, UNKNOWN[0]} if engine.labels is not None else {*self.config.keep}
        if strange := [label for label in self.config.keep if label not in labels]:
            raise ConfigError(
                f"step {self.name}: keep has {', '.join(strange)}, must be labels of {self.config.engine}: "
                f"{' '.join(sorted(labels))}; correct it"
            )

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        config = self.config
        text = document.text[: config.max_characters] if config.max_characters else document.text
        language, score = self._label(text)
        score = round(score, 4)
        tally[language] += 1
        if score < config.threshold:
            return Dropped("score_too_low", f"{language} {score}")
        if config.keep and language not in config.keep:
            return Dropped("other_language", f"{language} {score}")
        return document.with_meta(language=language, language_score=score)
