"""How much of an answer is in the passage it is about.

Place in the flow: under `checks`. Invariant: depends on words alone, in any script; where words are not set apart by
spaces, pairs of neighbouring characters stand for them.
"""

from __future__ import annotations

import regex

from cptron.corpus.words import WORD

UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+")
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,]\p{Nd}+)*")
_THOUSANDS = regex.compile(r"[.,](?=\p{Nd}{3}(?!\p{Nd}))")
_SHORT = 3
"""Letters of words that are mostly grammar; they tell nothing while there are others."""


def units_of(text: str) -> set[str]:
    """What is compared: words without case, and pairs of characters of unspaced scripts."""
    units: set[str] = set()
    for word in WORD.findall(text.casefold()):
        rest = word
        if UNSPACED.search(word):
            for run in UNSPACED.findall(word):
                units.update(run[place : place + 2] for place in range(max(1, len(run) - 1)))
            rest = UNSPACED.sub("", word)
        if rest:
            units.add(rest)
    return units


def grounded_share(answer: str, passage_units: set[str]) -> float:
    """Share of the answer's units that the passage has too; 1 where the answer has none."""
    units = units_of(answer)
    telling = {
        unit for unit in units if len(unit) > _SHORT or UNSPACED.search(unit) or _NUMBER.search(unit)
    } or units
    return len(telling & passage_units) / len(telling) if telling else 1.0


def numbers_of(text: str) -> set[str]:
    """Numbers as they are written, but for separators of thousands."""
    return {_plain(number) for number in _NUMBER.findall(text)}


def _plain(number: str) -> str:
    return str(_THOUSANDS.sub("", number))
