"""Keeps documents whose length is within bounds.

Place in the flow: a map step; cheap, so it belongs early. Invariant: looks at the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.step import MapStep, Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Bounds; 0 for none."""

    min_characters: int = 0
    """Fewer are too short; white space at both ends does not count."""
    max_characters: int = 0
    """More are too long."""
    min_words: int = 0
    """Words are what stands between white space."""
    max_words: int = 0
    """More are too long."""


class Step(MapStep[Config]):
    """See the module."""

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        for unit in ("characters", "words"):
            least, most = getattr(config, f"min_{unit}"), getattr(config, f"max_{unit}")
            if least < 0 or most < 0 or (most and least > most):
                return f"min_{unit} {least} and max_{unit} {most} let nothing through; set min <= max, or 0"
        return ""

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        config, text = self.config, document.text.strip()
        num_characters = len(text)
        if num_characters < config.min_characters:
            return Dropped("too_few_characters", f"{num_characters} characters")
        if config.max_characters and num_characters > config.max_characters:
            return Dropped("too_many_characters", f"{num_characters} characters")
        if config.min_words or config.max_words:
            num_words = len(text.split())
            if num_words < config.min_words:
                return Dropped("too_few_words", f"{num_words} words")
            if config.max_words and num_words > config.max_words:
                return Dropped("too_many_words", f"{num_words} words")
        return document
