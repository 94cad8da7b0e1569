"""The words that a tokenizer cuts into most pieces, weighed by how often they stand in the text.

Place in the flow: `analyze` counts words with it. Invariant: memory is bounded: when there are too many words the rare
ones are forgotten, and how many occurrences that were is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cptron.tokens.tokenizer import Tokenizer

MAX_WORDS = 1 << 20
"""Distinct words that are counted."""
CANDIDATES = 1 << 16
"""Most frequent words that are cut."""
MAX_CHARACTERS = 100
"""Of a word; longer ones are addresses and encoded data, not words."""


class WordCounter:
    """Counts words."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.forgotten = 0
        """Occurrences of words that are not counted any more: rare in the text before them."""

    def add(self, words: Sequence[str]) -> None:
        """Count words of a document."""
        self._counts.update(words)
        if len(self._counts) > MAX_WORDS:
            kept = Counter(dict(self._counts.most_common(MAX_WORDS // 2)))
            self.forgotten += self._counts.total() - kept.total()
            self._counts = kept

    def most_fragmented(
        self, tokenizers: Sequence[Tokenizer], names: Sequence[str], limit: int
    ) -> list[dict[str, Any]]:
        """The words that cost most tokens beyond one each, under the first tokenizer; the others' cuts beside it.

        A word is cut as it stands behind a space, so that of each only the text's own tokens count.
        """
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:CANDIDATES]
        words = [word for word, _ in ranked if len(word) <= MAX_CHARACTERS]
        cuts = [tokenizer.encode_batch([f" {word}" for word in words]) for tokenizer in tokenizers]
        order = sorted(
            range(len(words)), key=lambda i: (-self._counts[words[i]] * (len(cuts[0][i]) - 1), words[i])
        )
        return [self._row(words[i], [cut[i] for cut in cuts], tokenizers, names) for i in order[:limit]]

    def _row(
        self, word: str, cuts: Sequence[Sequence[int]], tokenizers: Sequence[Tokenizer], names: Sequence[str]
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"word": word, "occurrences": self._counts[word]}
        for cut, tokenizer, name in zip(cuts, tokenizers, names, strict=True):
            row[f"tokens{name}"] = len(cut)
            row[f"pieces{name}"] = " ".join(tokenizer.decode([number]).strip() or "_" for number in cut)
        return row
