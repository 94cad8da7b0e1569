"""Gopher's rules for prose: length, words, symbols, bullets, ellipses, stop words (Rae et al. 2021, table A1).

Place in the flow: a map step. Invariant: see `FilterStep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cptron.corpus.datatrove_filter import FilterStep, Words
from cptron.corpus.fast_rules import quality_by_kernel


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Thresholds, as datatrove names them."""

    min_doc_words: int = 50
    """Without marks of punctuation."""
    max_doc_words: int = 100_000
    """Without marks of punctuation."""
    min_avg_word_length: float = 3.0
    """Characters."""
    max_avg_word_length: float = 10.0
    """Characters."""
    max_symbol_word_ratio: float = 0.1
    """`#`, or ellipses, for each word."""
    max_bullet_lines_ratio: float = 0.9
    """Lines that begin with a bullet."""
    max_ellipsis_lines_ratio: float = 0.3
    """Lines that end with an ellipsis."""
    max_non_alpha_words_ratio: float = 0.8
    """Share of words with a letter that a document must have; the name is datatrove's."""
    min_stop_words: int = 2
    """Different stop words that a document must have; 0 for none."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Those of English: a corpus of another language needs its own, or `min_stop_words: 0`."""
    words: Words = "fast"
    """`fast`: by a regular expression, alike for all languages; `datatrove`: by its tokenizer of `language` (most need
    spaCy)."""
    language: str = "eng"
    """For `words: datatrove`."""


class Step(FilterStep[Config]):
    """See the module."""

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if config.min_doc_words < 1:
            return (
                f"min_doc_words {config.min_doc_words} must be 1 at least, other rules divide by it; raise it"
            )
        return ""

    def words(self) -> tuple[Words, str]:
        """See `FilterStep`."""
        return self.config.words, self.config.language

    def make_filter(self, filters: Any, words: Any) -> tuple[type, dict[str, Any]]:
        """See `FilterStep`."""
        config, base = self.config, filters.GopherQualityFilter
        return quality_by_kernel(base) if config.words == "fast" else base, {
            "min_doc_words": config.min_doc_words,
            "max_doc_words": config.max_doc_words,
            "min_avg_word_length": config.min_avg_word_length,
            "max_avg_word_length": config.max_avg_word_length,
            "max_symbol_word_ratio": config.max_symbol_word_ratio,
            "max_bullet_lines_ratio": config.max_bullet_lines_ratio,
            "max_ellipsis_lines_ratio": config.max_ellipsis_lines_ratio,
            "max_non_alpha_words_ratio": config.max_non_alpha_words_ratio,
            "min_stop_words": config.min_stop_words,
            "stop_words": list(config.stop_words),
            "language": words,
        }
