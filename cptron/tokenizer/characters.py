"""Frequent characters that a SentencePiece BPE only knows as bytes become tokens of their own, before any merge.

Place in the flow: `extend`, for the kind `byte-fallback`: merges of byte tokens could not be decoded. Invariant: a
character is a run of byte tokens that is its UTF-8; every other byte token stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from cptron.tokenizer.base import BYTE_TOKEN, Base
from cptron.tokenizer.word_counts import Word


def byte_ids(base: Base) -> dict[int, int]:
    """Id -> byte, of the byte tokens."""
    found = ((number, BYTE_TOKEN.fullmatch(token)) for token, number in base.vocab.items())
    return {number: int(match[1], 16) for number, match in found if match}


def learn_characters(
    base: Base, words: Mapping[Word, int], limit: int, min_count: int, next_id: int
) -> tuple[dict[str, int], dict[Word, int]]:
    """The characters that occur `min_count` times, the most frequent first, with ids from `next_id` on; and the words
    with these ids in place of bytes."""
    bytes_by_id = byte_ids(base)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for piece in _pieces(word, bytes_by_id):
            if isinstance(piece, str):
                counts[piece] += count
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    chosen = [c for c in ranked if counts[c] >= min_count and c not in base.vocab and c not in base.added]
    new = {character: next_id + number for number, character in enumerate(chosen[:limit])}
    ids_by_byte = {byte: number for number, byte in bytes_by_id.items()}
    rewritten: Counter[Word] = Counter()
    for word, count in words.items():
        rewritten[tuple(_rewritten(word, bytes_by_id, ids_by_byte, new))] += count
    return new, dict(rewritten)


def _rewritten(
    word: Word, bytes_by_id: Mapping[int, int], ids_by_byte: Mapping[int, int], new: Mapping[str, int]
) -> Iterator[int]:
    for piece in _pieces(word, bytes_by_id):
        if isinstance(piece, int):
            yield piece
        elif piece in new:
            yield new[piece]
        else:
            yield from (ids_by_byte[byte] for byte in piece.encode())


def _pieces(word: Word, bytes_by_id: Mapping[int, int]) -> Iterator[str | int]:
    """Characters that are written as bytes, and all other ids."""
    place = 0
    while place < len(word):
        first = bytes_by_id.get(word[place])
        length = _length(first)
        parts = [bytes_by_id.get(number) for number in word[place : place + length]]
        raw = bytes(part for part in parts if part is not None)
        try:
            character = raw.decode() if first is not None and len(raw) == length else ""
        except UnicodeDecodeError:
            character = ""
        yield character or word[place]
        place += len(raw) if character else 1


def _length(first: int | None) -> int:
    """Bytes of the character that begins with `first`."""
    if first is None or first < 0xC0:
        return 1
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4
