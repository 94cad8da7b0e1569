"""Hashed words and runs of words of a text, as counts by bucket.

Place in the flow: below DSIR, TF-IDF and the linear classifier. Invariant: integers only, so any machine has the same
buckets; words are those of `words.tokens_of`, in lower case.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.words import tokens_of

MOST_BUCKETS = 1 << 16
_MOST_CACHED = 1 << 20
_ODD = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

Counts = tuple[NDArray[np.uint16], NDArray[np.uint32]]
"""Buckets, ascending, and how often each is met."""


class _Words(dict[str, int]):
    """Word -> CRC-32, remembered."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_CACHED:
            self.clear()
        value = self[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return value


_words = _Words()


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: every bit of the result depends on all bits of a value."""
    values = values + _ODD
    values = (values ^ (values >> np.uint64(30))) * _M1
    values = (values ^ (values >> np.uint64(27))) * _M2
    return values ^ (values >> np.uint64(31))


def word_hashes(text: str) -> NDArray[np.uint64]:
    """One for each word or mark of punctuation."""
    return np.array([_words[word] for word in tokens_of(text.lower())], np.uint64)


def bucket_counts(text: str, buckets: int, longest: int) -> Counts:
    """Counts of runs of 1 to `longest` words, in `buckets` (65,536 at most) buckets."""
    assert 0 < buckets <= MOST_BUCKETS
    words = word_hashes(text)
    found, run = [], np.zeros(len(words), np.uint64)
    for length in range(1, longest + 1):
        run = mixed(run[: len(words) - length + 1] ^ words[length - 1 :]) if len(words) >= length else run[:0]
        found.append(run % np.uint64(buckets))
    counts = np.bincount(np.concatenate(found).astype(np.int64), minlength=1)
    filled = np.flatnonzero(counts)
    return filled.astype(np.uint16), counts[filled].astype(np.uint32)
