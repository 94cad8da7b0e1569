"""Drops or marks documents that hold too many words or phrases of a list: toxicity, adult content, boilerplate.

Place in the flow: a map step. The lists are the user's: none is shipped, since each is wrong for some domain.
Invariant: a phrase counts where it stands as whole words, in any case; `within_words` also finds it inside of words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import regex

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.step import MapStep, Tally
from cptron.corpus.words import WORD
from cptron.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Lists, and how much is too much."""

    files: tuple[str, ...]
    """Text files with one word or phrase a line; lines that begin with `#` and empty lines do not count."""
    min_hits: int = 1
    """Fewer hits do nothing."""
    min_hits_per_1000_words: float = 0.0
    """Nor do hits that are rarer than this."""
    action: Literal["drop", "mark"] = "drop"
    """`mark` keeps the document, with the number of hits as `blocklist_hits` in its metadata."""
    within_words: bool = False
    """For languages that are written without spaces."""


class Step(MapStep[Config]):
    """See the module."""

    version = 2
    packages = ("regex",)

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not config.files:
            return f"files has {len(config.files)} elements, must name a list at least; add one"
        if config.min_hits < 1:
            return f"min_hits {config.min_hits} must be 1 at least; raise it"
        return ""

    def files(self) -> list[Path]:
        """See `Step`."""
        return [Path(path) for path in self.config.files]

    def open(self) -> None:
        """See `Step`. Raises DataError for a list that is no text or is empty."""
        self._phrases: set[tuple[str, ...]] = set()
        lines = [line for path in self.files() for line in _lines(path)]
        if self.config.within_words:
            longest_first = sorted(set(lines), key=lambda line: (-len(line), line))
            self._inside: Any = regex.compile("|".join(map(regex.escape, longest_first)))
            return
        self._phrases = {tuple(WORD.findall(line)) for line in lines} - {()}
        if not self._phrases:
            raise DataError(
                f"step {self.name} has {len(lines)} phrases without a word, must have words; use within_words"
            )
        self._first: dict[str, list[int]] = {}
        for phrase in self._phrases:
            lengths = self._first.setdefault(phrase[0], [])
            if len(phrase) not in lengths:
                lengths.append(len(phrase))

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        text = document.text.casefold()
        words = WORD.findall(text)
        if self.config.within_words:
            hits = self._inside.findall(text)
        else:
            hits = list(self._hits(words))
        if len(hits) < self.config.min_hits:
            return document
        per_1000 = 1000 * len(hits) / max(1, len(words))
        if per_1000 < self.config.min_hits_per_1000_words:
            return document
        tally["hits"] += len(hits)
        if self.config.action == "mark":
            return document.with_meta(blocklist_hits=len(hits))
        return Dropped("blocklisted", f"{len(hits)} hits, {per_1000:.1f} in 1000 words")

    def _hits(self, words: list[str]) -> Iterator[str]:
        for place, word in enumerate(words):
            for length in self._first.get(word, ()):
                if tuple(words[place : place + length]) in self._phrases:
                    yield word


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip().casefold() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be a list in UTF-8 ({error.reason}); save it as such") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise DataError(f"{path} has {len(found)} words or phrases, must have some; add one a line")
    return found
