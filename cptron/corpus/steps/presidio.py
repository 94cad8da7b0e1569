"""Personal data that only a model finds (names, places), by Microsoft's Presidio.

Place in the flow: a map step; an option beside `pii`, since it is slow and names nobody in many of its hits.
Invariant: nothing is downloaded: the spaCy model must be installed, or none is used and only Presidio's patterns act;
the list of domains' suffixes by which those judge addresses is the one in its package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron.corpus.document import Document, Result
from cptron.corpus.optional import optional_module
from cptron.corpus.select.tags import spacy_files
from cptron.corpus.step import MapStep, Tally
from cptron.corpus.steps.pii import replaced
from cptron.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What Presidio looks for."""

    entities: tuple[str, ...] = ("PERSON", "LOCATION")
    """As Presidio names them."""
    language: str = "en"
    """Of the documents."""
    spacy_model: str = ""
    """Installed spaCy model that finds names, such as en_core_web_lg; empty for patterns alone."""
    threshold: float = 0.5
    """Least score of a hit."""
    placeholder: str = "<{kind}>"
    """`{kind}` becomes the entity."""


class Step(MapStep[Config]):
    """See the module."""

    def __init__(self, name: str, config: Config, seed: int) -> None:
        super().__init__(name, config, seed)
        model = (config.spacy_model,) if config.spacy_model else ()
        self.packages = ("presidio-analyzer", "spacy", *model)  # type: ignore[misc]

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if "{kind}" not in config.placeholder or not config.entities:
            return f"placeholder {config.placeholder!r} must hold {{kind}}, and entities a name; correct them"
        return ""

    def files(self) -> list[Path]:
        """See `Step`: what names the model and its version. Raises DataError where it is not installed."""
        return spacy_files(self.config.spacy_model, self.name)

    def open(self) -> None:
        """See `Step`. Raises DataError where the model or an entity is unknown."""
        config = self.config
        domains: Any = optional_module("tldextract.tldextract", "tldextract", self.name)
        domains.TLD_EXTRACTOR = domains.TLDExtract(suffix_list_urls=(), cache_dir=None)
        presidio: Any = optional_module("presidio_analyzer", "presidio-analyzer and spacy", self.name)
        engines: Any = optional_module(
            "presidio_analyzer.nlp_engine", "presidio-analyzer and spacy", self.name
        )
        try:
            if config.spacy_model:
                models = [{"lang_code": config.language, "model_name": config.spacy_model}]
                self.files()
                engine = engines.SpacyNlpEngine(models=models)
            else:
                from presidio_analyzer.nlp_engine.no_op_nlp_engine import NoOpNlpEngine

                engine = NoOpNlpEngine([{"lang_code": config.language, "model_name": "none"}])
            self._analyzer: Any = presidio.AnalyzerEngine(
                nlp_engine=engine, supported_languages=[config.language]
            )
            known = set(self._analyzer.get_supported_entities(config.language))
        except (ValueError, OSError, TypeError) as error:
            raise DataError(
                f"step {self.name}: Presidio cannot be set up ({error}); correct its settings"
            ) from error
        if unknown := sorted(set(config.entities) - known):
            raise DataError(
                f"step {self.name} asks for {unknown[0]}, must be one of {', '.join(sorted(known))}; correct "
                "entities, or name a spacy_model"
            )

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`. Of hits that overlap the one with the higher score stays, then the longer one."""
        config = self.config
        hits = self._analyzer.analyze(
            document.text,
            language=config.language,
            entities=list(config.entities),
            score_threshold=config.threshold,
        )
        spans: list[tuple[int, int, str]] = []
        for hit in sorted(
            hits, key=lambda hit: (-hit.score, hit.start - hit.end, hit.start, hit.entity_type)
        ):
            if not any(start < hit.end and hit.start < end for start, end, _ in spans):
                spans.append((hit.start, hit.end, hit.entity_type))
                tally[hit.entity_type] += 1
        return document.with_text(replaced(document.text, sorted(spans), config.placeholder))
