"""Takes out what documents share with evaluation sets.

Place in the flow: a map step; late, so that little is looked at, but before selection. Invariant: a document is touched
only if it holds as many words in a row of an item as `run_words` says.

See docs/deduplication.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cptron.corpus.dedup.contamination import EvaluationIndex, Span, without
from cptron.corpus.dedup.evaluation_items import files_of, read_items
from cptron.corpus.dedup.words import composed
from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.step import MapStep, Tally
from cptron.errors import DataError

MOST_NAMED = 10
"""Items that a cut document names in its metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Evaluation sets, and what is done about them."""

    evaluation: tuple[str, ...] = ()
    """Files, directories, globs of JSONL (.gz, .zst), Parquet, Arrow or text; every string of a record is an item."""
    evaluation_keys: tuple[str, ...] = ()
    """Keys whose strings are items; none for all. Leave out keys that hold names or whole passages of public text."""
    run_words: int = 12
    """Words in a row that must be the same; GPT-3's report has 13, FineWeb's tools 12."""
    shortest_item_words: int = 8
    """An item of fewer words than `run_words` must stand in the document whole; one of fewer than these is left out."""
    action: Literal["drop", "cut"] = "drop"
    """Drop the document, or cut out the words and keep the rest."""
    most_cuts: int = 10
    """A document with more spans to be cut is dropped."""


class Step(MapStep[Config]):
    """See the module."""

    batch_documents = 64

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not config.evaluation:
            return "evaluation names nothing, must name evaluation sets; name files or leave the step out"
        if config.run_words < 1:
            return f"run_words is {config.run_words}, must be at least 1; 12 or 13 are usual"
        if not 1 <= config.shortest_item_words <= config.run_words:
            return (
                f"shortest_item_words is {config.shortest_item_words}, must be 1 to run_words ({config.run_words}); "
                "8 is usual"
            )
        return ""

    def files(self) -> Sequence[Path]:
        """See `Step`."""
        return files_of(self.config.evaluation)

    def open(self) -> None:
        """See `Step`."""
        config = self.config
        items = read_items(config.evaluation, config.evaluation_keys)
        self._index = EvaluationIndex(items, config.run_words, config.shortest_item_words)
        if not self._index.num_runs:
            raise DataError(
                f"{', '.join(config.evaluation)}: none of {self._index.num_items} items has "
                f"{config.shortest_item_words} words; name other keys or lower shortest_item_words"
            )

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        return self.apply_batch([document], tally)[0]

    def apply_batch(self, documents: Sequence[Document], tally: Tally) -> list[Result]:
        """See `MapStep`."""
        texts = [composed(document.text) for document in documents]
        return [
            self._result(document, text, spans, tally) if spans else document
            for document, text, spans in zip(documents, texts, self._index.find(texts), strict=True)
        ]

    def _result(self, document: Document, text: str, spans: Sequence[Span], tally: Tally) -> Result:
        items = list(dict.fromkeys(span.item for span in spans))
        for name in {item.partition("#")[0] for item in items}:
            tally[f"documents with words of {name}"] += 1
        shown = f"{len(spans)} spans, the first of {items[0]}: {text[spans[0].begin : spans[0].end]}"
        if self.config.action == "drop":
            return Dropped("words_of_evaluation_set", shown)
        rest = without(text, spans)
        if len(spans) > self.config.most_cuts or not rest:
            return Dropped("too_many_words_of_evaluation_set", shown)
        tally["spans cut"] += len(spans)
        return document.with_text(rest).with_meta(decontaminated=items[:MOST_NAMED])
