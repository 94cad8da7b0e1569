"""How much a text repeats itself, or another one.

Place in the flow: under `checks`. Invariant: depends on words alone, in any script; where words are not set apart by
spaces, characters stand for them.
"""

from __future__ import annotations

import functools

from cptron.corpus.synthesis.grounding import UNSPACED
from cptron.corpus.words import WORD

_RUN_WORDS = 8
"""Words in a row that two texts share only where one has them from the other."""
_LOOP_WORDS = 30
"""Shorter texts do not loop."""
_LOOP_RUN = 5


@functools.lru_cache(maxsize=64)
def runs_of(text: str, length: int = _RUN_WORDS) -> frozenset[tuple[str, ...]]:
    """Words in a row, from each word on."""
    return frozenset(_runs(_sequence(text), length))


def repeated_share(text: str) -> float:
    """Share of its runs of a few words that were in it before; 0 of a short text."""
    words = _sequence(text)
    if len(words) < _LOOP_WORDS:
        return 0.0
    runs = _runs(words, _LOOP_RUN)
    return 1 - len(set(runs)) / len(runs)


def copied_share(copy: str, original: str) -> float:
    """Share of `original` that `copy` has word for word, in runs of eight words."""
    runs = runs_of(original)
    return len(runs & runs_of(copy)) / len(runs) if runs else 0.0


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + length]) for place in range(len(words) - length + 1)]


def _sequence(text: str) -> list[str]:
    words: list[str] = []
    for word in WORD.findall(text.casefold()):
        words += word if UNSPACED.search(word) else [word]
    return words
