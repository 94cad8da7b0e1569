"""Gopher's rules against repetition: of lines, paragraphs and n-grams (Rae et al. 2021, table A1).

Place in the flow: a map step; dear, most of all with `words: datatrove`, so it belongs behind the other rules.
Invariant: see `FilterStep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cptron.corpus.datatrove_filter import FilterStep, Words
from cptron.corpus.fast_rules import repetition_by_kernel


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Thresholds, as datatrove names them; shares of the document, 0 for no rule."""

    dup_line_frac: float = 0.3
    """Lines that were there before."""
    dup_para_frac: float = 0.3
    """Paragraphs that were there before."""
    dup_line_char_frac: float = 0.2
    """Characters in such lines."""
    dup_para_char_frac: float = 0.2
    """Characters in such paragraphs."""
    top_n_grams: tuple[float, ...] = (0.2, 0.18, 0.16)
    """Characters in the most frequent sequence of 2, 3, ... words."""
    dup_n_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Characters in sequences of 5, 6, ... words that were there before."""
    words: Words = "fast"
    """See `gopher_quality`."""
    language: str = "eng"
    """For `words: datatrove`."""


class Step(FilterStep[Config]):
    """See the module."""

    def words(self) -> tuple[Words, str]:
        """See `FilterStep`."""
        return self.config.words, self.config.language

    def make_filter(self, filters: Any, words: Any) -> tuple[type, dict[str, Any]]:
        """See `FilterStep`."""
        config, base = self.config, filters.GopherRepetitionFilter
        return repetition_by_kernel(base) if config.words == "fast" else base, {
            "dup_line_frac": config.dup_line_frac,
            "dup_para_frac": config.dup_para_frac,
            "dup_line_char_frac": config.dup_line_char_frac,
            "dup_para_char_frac": config.dup_para_char_frac,
            "top_n_grams": tuple((n, most) for n, most in enumerate(config.top_n_grams, start=2) if most),
            "dup_n_grams": tuple((n, most) for n, most in enumerate(config.dup_n_grams, start=5) if most),
            "language": words,
        }
