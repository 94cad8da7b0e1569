"""Words that documents share with evaluation sets.

Place in the flow: the step `decontaminate` drops or cuts what is found here. Invariant: what is found are runs of words
that stand, in lower case and without punctuation, in an item as in the document; hashes only lead to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cptron.corpus import kernels
from cptron.corpus.dedup.words import composed, folding_table, packed

_ITEMS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a document that stands in an evaluation item."""

    begin: int
    """Characters of the document in NFC: first."""
    end: int
    """Behind the last."""
    item: str
    """Name of the first item that has its first run of words."""


class EvaluationIndex:
    """Runs of `size` words of evaluation items, in memory: 40 bytes a run and the items' texts."""

    def __init__(self, items: Iterable[tuple[str, str]], size: int, shortest: int) -> None:
        """Items are names and texts. One of fewer than `size` words is one run if it has `shortest`, else left out."""
        self._kernel = kernels.Contamination(folding_table(), size, shortest)
        self._names: list[str] = []
        self.num_left_out = 0
        for batch in _batches(items):
            self._names += [name for name, _ in batch]
            num_words = self._kernel.add(*packed([composed(text) for _, text in batch]))
            self.num_left_out += int((num_words < min(shortest, size)).sum())
        self._kernel.finish_adding()

    @property
    def num_items(self) -> int:
        """Items, those left out too."""
        return len(self._names)

    @property
    def num_runs(self) -> int:
        """Runs of words, equal ones counted as often as they stand."""
        return int(self._kernel.num_runs)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """Spans of each text, which must be in NFC, in order and apart from each other."""
        data, starts = packed(texts)
        found: list[list[Span]] = [[] for _ in texts]
        matches = self._kernel.find(data, starts)
        for document in np.unique(matches[:, 0]).tolist():
            rows = matches[matches[:, 0] == document]
            text = data[starts[document] : starts[document + 1]].tobytes()
            found[document] = list(self._spans(text, rows[np.argsort(rows[:, 1], kind="stable")].tolist()))
        return found

    def _spans(self, text: bytes, rows: list[list[int]]) -> Iterator[Span]:
        """Overlapping runs as one; bytes as characters."""
        at_byte = at_character = at_row = 0
        while at_row < len(rows):
            _, begin, end, item, _ = rows[at_row]
            while at_row < len(rows) and rows[at_row][1] <= end:
                end = max(end, rows[at_row][2])
                at_row += 1
            first = at_character + len(text[at_byte:begin].decode("utf-8", "surrogatepass"))
            last = first + len(text[begin:end].decode("utf-8", "surrogatepass"))
            yield Span(first, last, self._names[item])
            at_byte, at_character = end, last


def without(text: str, spans: Sequence[Span]) -> str:
    """`text` without the spans; what stood before and after one is parted by an empty line."""
    edges = [0, *(edge for span in spans for edge in (span.begin, span.end)), len(text)]
    pieces = [text[begin:end].strip() for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return "\n\n".join(piece for piece in pieces if any(char.isalnum() for char in piece))


def _batches(items: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for item in items:
        batch.append(item)
        if len(batch) == _ITEMS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
