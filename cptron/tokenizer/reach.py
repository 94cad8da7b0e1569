"""Whether some text is really encoded into each new token.

Place in the flow: `extend` checks what it has written. Invariant: a token counts as reachable only after a text was
encoded by the new tokenizer's own library and the token was in the result.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import islice

from cptron.tokenizer.base import Base
from cptron.tokenizer.word_counts import Word

MAX_COMPLETIONS = 4096
"""Texts that are tried around a token that is part of a character."""
BEFORE = ("", "a", "\n")
"""What a text is tried behind: SentencePiece puts a space before what begins a text."""


def unreachable(
    base: Base, extended: Base, tokens: Mapping[str, int], witness: Mapping[int, Word]
) -> list[int]:
    """Ids of `tokens` that no text tried is encoded into: the token's own text, the word it was learned in, and where
    it is part of a character, characters around it, behind what it stands behind in that word."""
    left = {number: extended.bytes_of(token) for token, number in tokens.items()}
    own = {number: _decoded(raw) for number, raw in left.items()}
    words = {number: _bytes_of(base, word) for number, word in witness.items()}
    learned_in = {number: _decoded(raw) for number, raw in words.items()}
    for texts in (own, learned_in):
        for before in BEFORE:
            tried = {number: before + texts[number] for number in left if texts.get(number)}
            encoded = extended.tokenizer.encode_batch(list(tried.values()))
            for number, ids in zip(tried, encoded, strict=True):
                if number in ids:
                    del left[number]
    return [
        number
        for number, raw in left.items()
        if not _in_a_completion(extended, number, raw, words.get(number, b""))
    ]


def _bytes_of(base: Base, word: Word) -> bytes:
    """Of a word's ids; new characters have none in the base."""
    return b"".join(base.bytes_of(base.tokens[number]) for number in word if number in base.tokens)


def _in_a_completion(extended: Base, number: int, raw: bytes, word: bytes) -> bool:
    """In some text around `raw`, alone and behind what precedes it in `word`: a pre-tokenizer may begin a word with a
    letter and never with a vowel sign."""
    before = word[: max(word.find(raw), 0)].decode("utf-8", "ignore")
    completed = list(islice(_completions(raw), MAX_COMPLETIONS))
    return any(
        number in ids
        for start in dict.fromkeys(("", before, before[-1:], *BEFORE))
        for ids in extended.tokenizer.encode_batch([start + text for text in completed])
    )


def _completions(raw: bytes) -> Iterator[str]:
    """Texts that begin or end with the rest of a character around `raw`."""
    before = 0
    while before < len(raw) and 0x80 <= raw[before] < 0xC0:
        before += 1  # bytes that end a character whose beginning is missing
    for first in _characters():
        if before and not first.endswith(raw[:before]):
            continue
        start = first + raw[before:] if before else raw
        cut = start.decode("utf-8", "ignore").encode()
        rest = start[len(cut) :]
        for last in _beginning_with(rest) if rest else [b""]:
            yield (cut + last).decode()
        if not before:
            return


def _beginning_with(rest: bytes) -> Iterator[bytes]:
    characters = _characters()
    for place in range(bisect_left(characters, rest), len(characters)):
        if not characters[place].startswith(rest):
            return
        yield characters[place]


@functools.cache
def _characters() -> list[bytes]:
    """UTF-8 of the characters beyond ASCII that text may have, in order, which is that of their bytes too."""
    points = [*range(0x80, 0xD800), *range(0xE000, 0x20000)]
    return [chr(point).encode() for point in points]


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
