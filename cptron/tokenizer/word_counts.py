"""How often each word stands in a corpus, as the ids that the base cuts it into.

Place in the flow: `extend` counts the domain's words once; `merge_loop` learns from them. Invariant: what counts as a
word, and its ids, come from the base's own library: normaliser, pre-tokenizer, merges and added tokens as in use.

Shapes: N ids of a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from cptron.tokenizer.base import SPACE, Base
from cptron.tokenizer.texts import Text

MAX_WORD = 256
"""Ids; longer words, such as encoded images, are not learned from."""

Word = tuple[int, ...]


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
        ids: list[int] = []
        words: list[int] = []
        after = 0
        for encoding in base.backend.encode_batch([text.text for text in texts], add_special_tokens=False):
            ids += encoding.ids
            words += [after + (word or 0) for word in encoding.word_ids]
            after = words[-1] + 1 if words else 0
        ids_N = np.array(ids, np.uint32)
        is_start_N = np.diff(np.array(words, np.int64), prepend=-1) != 0
        if starts_word is not None:
            is_start_N |= starts_word[ids_N]
        starts = np.flatnonzero(is_start_N)
        ends = np.append(starts[1:], len(ids_N))
        fits = ends - starts <= MAX_WORD
        too_long += int(len(fits) - fits.sum())
        flat = ids_N.tobytes()
        found.update(
            [flat[a:b] for a, b in zip((starts[fits] * 4).tolist(), (ends[fits] * 4).tolist(), strict=True)]
        )
        num_documents += len(texts)
        num_bytes += sum(text.num_bytes for text in texts)
    counted = {tuple(np.frombuffer(word, np.uint32).tolist()): count for word, count in found.items()}
    return WordCounts(counted, num_bytes, num_documents, too_long)


def _starts(base: Base) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Of each id, whether a word begins with it: SentencePiece has no pre-tokenizer, a word begins with its space."""
    starts_V = np.zeros(base.tokenizer.vocab_size, np.bool_)
    starts_V[[number for token, number in base.vocab.items() if token.startswith(SPACE)]] = True
    return starts_V
