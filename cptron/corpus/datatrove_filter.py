"""A filter of datatrove as a map step.

Place in the flow: steps of quality rules derive from this. Invariant: the verdict and its reason are datatrove's own,
on the words that `words` names; whatever a filter counts besides goes into the tally.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import Any, ClassVar, Literal, TypeVar

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.optional import optional_module
from cptron.corpus.step import MapStep, Tally
from cptron.errors import DataError

LONGEST = 2_000_000
"""Characters by which a document is judged: the rules hold lists of all its n-grams in memory."""
Words = Literal["fast", "datatrove"]
"""Who cuts a text into words and sentences."""
C = TypeVar("C")


class FilterStep(MapStep[C]):
    """Makes its filter in `open`."""

    packages = ("datatrove", "regex")
    rewrites: ClassVar[bool] = False
    """Whether the filter changes texts, line by line."""

    @abstractmethod
    def make_filter(self, filters: Any, words: Any) -> tuple[type, dict[str, Any]]:
        """Class and arguments of the filter, of the module `datatrove.pipeline.filters`; `words` is its `language`."""

    @abstractmethod
    def words(self) -> tuple[Words, str]:
        """Who cuts words, and the language for datatrove."""

    def open(self) -> None:
        """See `Step`."""
        filters = optional_module("datatrove.pipeline.filters", "datatrove and xxhash < 4", self.name)
        self._document = optional_module("datatrove.data", "datatrove", self.name).Document
        kind, language = self.words()
        if kind == "fast":
            from cptron.corpus.words import datatrove_words

            words = datatrove_words()
        else:
            _require_words(language, self.name)
            words = language
        base, arguments = self.make_filter(filters, words)
        self._filter: Any = _counting(base)(**arguments)

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`. A text without words is dropped here: the filters divide by their number."""
        if not document.text.strip():
            return Dropped("empty")
        theirs = self._document(document.text if self.rewrites else document.text[:LONGEST], document.id)
        self._filter.tally = tally
        result = self._filter.filter(theirs)
        kept, reason = result if isinstance(result, tuple) else (result, self.name)
        if not kept:
            return Dropped(_snake(reason))
        return document.with_text(theirs.text) if self.rewrites else document


def _require_words(language: str, step: str) -> None:
    """Raise DataError where datatrove has no tokenizer of the language, or it lacks a package: it would notice at the
    first document."""
    tokenizers: Any = optional_module("datatrove.utils.word_tokenizers", "datatrove", step)
    try:
        tokenizers.load_word_tokenizer(language).word_tokenize("A test.")
    except (ImportError, ValueError, LookupError, OSError) as error:
        raise DataError(
            f"step {step}: words of {language!r} cannot be cut by datatrove ({' '.join(str(error).split())[:200]}); "
            "install what it names, correct language, or use words: fast"
        ) from None


def _snake(reason: str) -> str:
    return "_".join(reason.replace("<", "fewer_than").split()).replace("-", "_")


def _counting(base: type) -> type:
    """`base` with its counts in a tally, rather than in running means of its own."""

    class Counting(base):  # type: ignore[misc]
        tally: ClassVar[Counter[str]] = Counter()

        def stat_update(self, *labels: str, value: int = 1, unit: str | None = None) -> None:
            for label in labels:
                self.tally[label] += value

    return Counting
