"""Twins in plain Python of the kernels of cptron.corpus.dedup: words, shingles, signatures, band keys."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from cptron.corpus.dedup.words import NO_SPACES

MASK = 2**64 - 1


def is_alone(char: str) -> bool:
    """Whether a letter is of a script without spaces."""
    return any(first <= ord(char) <= last for first, last in NO_SPACES)


def words(text: str) -> list[str]:
    """Folded words by the definition in `cptron.corpus.dedup.words`."""
    found: list[str] = []
    within = alone = False  # in a word; in one that takes marks only
    for char in unicodedata.normalize("NFC", text):
        category = unicodedata.category(char)
        if category == "Cf":
            continue
        if category[0] not in "LMN":
            within = False
            continue
        lower = char.lower() if category[0] != "M" and len(char.lower()) == 1 else char
        begins = category[0] != "M" and (is_alone(char) or alone)
        if not within or begins:
            found.append("")
            alone = category[0] != "M" and is_alone(char)
        within = True
        found[-1] += lower
    return found


def characters(text: str) -> list[str]:
    """Folded characters, one space for all that separates two words."""
    spaced = ""
    for char in unicodedata.normalize("NFC", text):
        category = unicodedata.category(char)
        if category == "Cf":
            continue
        if category[0] in "LN":
            spaced += char.lower() if len(char.lower()) == 1 else char
        else:
            spaced += char if category[0] == "M" else " "
    return list(re.sub(" +", " ", spaced).strip(" "))


def word_hash(word: str) -> int:
    """Hash of a folded word."""
    value = 0x9E3779B97F4A7C15
    for char in word:
        value = (value + ord(char)) * 0x9FB21C651E98DF25 & MASK
        value ^= value >> 32
    return value


def finish(value: int) -> int:
    """Murmur3's finalizer of 64 bits."""
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def shingle_set(tokens: Sequence[str], size: int) -> list[int]:
    """Sorted, distinct lower halves of the hashes of all runs."""
    size = min(size, len(tokens))
    found = set()
    for start in range(len(tokens) - size + 1 if tokens else 0):
        total = 0
        for token in tokens[start : start + size]:
            total = (total * 0xD6E8FEB86659FD93 + word_hash(token)) & MASK
        found.add(finish(total) & 0xFFFFFFFF)
    return sorted(found)


def finish32(value: int) -> int:
    """Murmur3's finalizer of 32 bits."""
    value = (value ^ value >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    value = (value ^ value >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ value >> 16


def signature(members: Sequence[int], multipliers: Sequence[int], addends: Sequence[int]) -> list[int]:
    """Minima of a * finish32(x) + b."""
    return [
        min(((a * finish32(x) + b) & 0xFFFFFFFF for x in members), default=0xFFFFFFFF)
        for a, b in zip(multipliers, addends, strict=True)
    ]


def band_key(rows: Sequence[int], band: int) -> int:
    """Key of one band."""
    key = finish(band + 1)
    for row in rows:
        key = finish(key ^ row)
    return key
