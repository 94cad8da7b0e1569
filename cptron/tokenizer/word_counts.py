"""How often each word stands in a corpus, as the ids that the base cuts it into.

Place in the flow: `extend` counts the domain's words once; `merge_loop` learns from them. Invariant: what counts as a
word, and its ids, come from the base's own library: normaliser, pre-tokenizer, merges and added tokens as in use.

Shapes: N ids of a block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cptron.tokenizer.base import SPACE, Base
from cptron.tokenizer.texts import Text

MAX_WORD = 256
"""Ids; longer words, such as encoded images, are not learned from."""

STRETCH = 1 << 20
"""Characters that are cut at a time: what the library returns is many times larger than the text."""
END = re.compile(r"\S(?= \S)")
"""Where a text may be cut: every pre-tokenizer ends a word there, but not within several spaces."""

Word = tuple[int, ...]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WordCounts:
    """What was counted."""

    words: dict[Word, int] = field(default_factory=dict)
    num_bytes: int = 0
    num_documents: int = 0
    too_long: int = 0
    """Words of more than MAX_WORD ids."""


def count_words(base: Base, blocks: Iterable[list[Text]]) -> WordCounts:
    """Words of all documents, in the order of first sight."""
    found: Counter[bytes] = Counter()
    num_bytes = num_documents = too_long = 0
    starts_word = _starts(base) if base.kind == "byte-fallback" else None
    for texts in blocks:
        for stretches in _in_stretches(texts):
            flat, starts, ends = _words_of(base, stretches, starts_word)
            fits = ends - starts <= MAX_WORD
            too_long += int(len(fits) - fits.sum())
            places = zip((starts[fits] * 4).tolist(), (ends[fits] * 4).tolist(), strict=True)
            found.update([flat[first:last] for first, last in places])
        num_documents += len(texts)
        num_bytes += sum(text.num_bytes for text in texts)
    counted = {tuple(np.frombuffer(word, np.uint32).tolist()): count for word, count in found.items()}
    return WordCounts(counted, num_bytes, num_documents, too_long)


def _in_stretches(texts: Iterable[Text]) -> Iterator[list[str]]:
    """The texts in groups of about STRETCH characters; a longer one is cut where a word ends anyway."""
    group: list[str] = []
    size = 0
    for text in texts:
        start = 0
        while start < len(text.text):
            found = END.search(text.text, start + STRETCH)
            end = found.end() if found else len(text.text)
            group.append(text.text[start:end])
            size += end - start
            start = end
            if size >= STRETCH:
                yield group
                group, size = [], 0
    if group:
        yield group


def _words_of(
    base: Base, texts: Sequence[str], starts_word: Flags | None
) -> tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids of all texts as bytes, four each, and where each word begins and ends in them."""
    ids: list[int] = []
    words: list[int] = []
    after = 0
    for encoding in base.backend.encode_batch(texts, add_special_tokens=False):
        ids += encoding.ids
        words += [after + (word or 0) for word in encoding.word_ids]
        after = words[-1] + 1 if words else 0
    ids_N = np.array(ids, np.uint32)
    is_start_N = np.diff(np.array(words, np.int64), prepend=-1) != 0
    if starts_word is not None:
        is_start_N |= starts_word[ids_N]
    starts = np.flatnonzero(is_start_N)
    return ids_N.tobytes(), starts, np.append(starts[1:], len(ids_N))


def _starts(base: Base) -> Flags:
    """Of each id, whether a word begins with it: SentencePiece has no pre-tokenizer, a word begins with its space."""
    starts_V = np.zeros(base.tokenizer.vocab_size, np.bool_)
    starts_V[[number for token, number in base.vocab.items() if token.startswith(SPACE)]] = True
    return starts_V
