"""FineWeb's own rules: ends of lines, short lines, repeated lines, lists (Penedo et al. 2024).

Place in the flow: a map step. Invariant: see `FilterStep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cptron.corpus.datatrove_filter import FilterStep, Words


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Thresholds, as datatrove names them."""

    line_punct_thr: float = 0.12
    """Share of lines that must end with a mark that ends sentences, of any script."""
    line_punct_exclude_zero: bool = False
    """Let documents through in which no line does."""
    short_line_thr: float = 0.67
    """Share of lines that may be short."""
    short_line_length: int = 30
    """Characters of a short line."""
    char_duplicates_ratio: float = 0.01
    """Share of characters in lines that were there before."""
    new_line_ratio: float = 0.3
    """Line ends for each word."""
    words: Words = "fast"
    """See `gopher_quality`."""
    language: str = "eng"
    """For `words: datatrove`."""


class Step(FilterStep[Config]):
    """See the module."""

    version = 2

    def words(self) -> tuple[Words, str]:
        """See `FilterStep`."""
        return self.config.words, self.config.language

    def make_filter(self, filters: Any, words: Any) -> tuple[type, dict[str, Any]]:
        """See `FilterStep`."""
        names = [name for name in Config.__dataclass_fields__ if name not in ("words", "language")]
        return filters.FineWebQualityFilter, {
            **{name: getattr(self.config, name) for name in names},
            "language": words,
        }
