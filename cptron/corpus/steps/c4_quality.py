"""C4's rules: lines that are no sentences go, and documents of which little is left (Raffel et al. 2020).

Place in the flow: a map step that changes texts: the lines it removes are counted by reason in its tally.
Invariant: see `FilterStep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cptron.corpus.datatrove_filter import FilterStep, Words


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Rules, as datatrove names them."""

    split_paragraph: bool = True
    """Look at lines; false: at sentences."""
    remove_citations: bool = True
    """`[12]`, `[edit]` and the like."""
    filter_no_terminal_punct: bool = True
    """Remove lines that do not end as sentences do. What ends one is Latin: turn it off for other scripts."""
    min_num_sentences: int = 5
    """Drop documents with fewer left; -1 for no rule."""
    min_words_per_line: int = 3
    """Remove lines with fewer; -1 for no rule."""
    max_word_length: int = 1000
    """Remove lines with a longer word; -1 for no rule."""
    filter_lorem_ipsum: bool = True
    """Drop documents with it."""
    filter_javascript: bool = True
    """Remove lines that speak of it."""
    filter_curly_bracket: bool = True
    """Drop documents with one: technical text has many, so turn it off for that."""
    filter_policy: bool = True
    """Remove lines about cookies and terms of use."""
    words: Words = "fast"
    """Who finds sentences; see `gopher_quality`."""
    language: str = "eng"
    """For `words: datatrove`."""


class Step(FilterStep[Config]):
    """See the module."""

    rewrites = True

    def words(self) -> tuple[Words, str]:
        """See `FilterStep`."""
        return self.config.words, self.config.language

    def make_filter(self, filters: Any, words: Any) -> tuple[type, dict[str, Any]]:
        """See `FilterStep`."""
        config = self.config
        names = [name for name in Config.__dataclass_fields__ if name not in ("words", "language")]
        return filters.C4QualityFilter, {**{name: getattr(config, name) for name in names}, "language": words}
