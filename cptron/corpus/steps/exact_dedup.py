"""Keeps the first of documents with the same text.

Place in the flow: a corpus step; before near-duplicates, which cost more, and after what makes texts alike.
Invariant: of equal documents the one that comes first in the order of the inputs stays, whatever the shards; two texts
are taken for equal if 128 bits of BLAKE2b are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import regex
from numpy.typing import NDArray

from cptron.corpus.document import Document
from cptron.corpus.sealed import RESTART
from cptron.corpus.step import CorpusStep, ShardFeatures, Tally
from cptron.errors import DataError

_AT_ONCE = 8_000_000
"""Hashes that are sorted together: 0.3 GB."""
_WORDS = regex.compile(r"\w+")  # unlike re, it knows that vowel signs belong to words


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What counts as the same text."""

    same: Literal["text", "spaces", "words"] = "spaces"
    """`text`: every character; `spaces`: but for the amount of white space; `words`: but for case, punctuation and
    white space too."""


class Step(CorpusStep[Config]):
    """See the module."""

    version = 2
    packages = ("regex",)
    reasons = ("duplicate",)

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """128 bits of each document, sorted: all upper halves, all lower halves, and whose they are."""
        digests = (
            hashlib.blake2b(self._key(document.text), digest_size=16).digest() for document in documents
        )
        hashes = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        with path.open("wb") as stream:
            for column in (hashes[order, 0], hashes[order, 1], order.astype("<u4")):
                stream.write(column.tobytes())

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """A later hash that was there before is a duplicate. Hashes are looked at in ranges, so that memory is bounded
        by a byte a document and `_AT_ONCE` hashes; each is read once."""
        total = sum(shard.num_documents for shard in shards)
        parts = max(1, -(-total // _AT_ONCE))
        codes = np.zeros(total, np.uint8)
        for part in range(parts):
            self._mark(shards, -(-part * 2**64 // parts), -(-(part + 1) * 2**64 // parts), codes)
        start = 0
        for shard in shards:
            self.write_verdicts(decided, shard, codes[start : start + shard.num_documents])
            start += shard.num_documents

    def _mark(self, shards: Sequence[ShardFeatures], first: int, stop: int, codes: NDArray[np.uint8]) -> None:
        """Duplicates among the hashes whose upper half is in [first, stop)."""
        columns: list[list[NDArray[np.uint64]]] = [[], [], []]
        start = 0
        for shard in shards:
            for column, values in zip(columns, _range_of(shard, first, stop), strict=True):
                column.append(values)
            columns[2][-1] = columns[2][-1] + np.uint64(start)
            start += shard.num_documents
        high, low, place = map(np.concatenate, columns) if shards else [np.zeros(0, np.uint64)] * 3
        order = np.lexsort((place, low, high))
        same = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
        codes[place[order[1:][same]]] = 1

    def _key(self, text: str) -> bytes:
        if self.config.same == "spaces":
            text = " ".join(text.split())
        elif self.config.same == "words":
            text = " ".join(_WORDS.findall(text.casefold()))
        return text.encode()


def _range_of(shard: ShardFeatures, first: int, stop: int) -> list[NDArray[np.uint64]]:
    """Upper halves in [first, stop), the lower halves beside them, and the documents' places in the shard."""
    count = shard.num_documents
    size = shard.path.stat().st_size if shard.path.is_file() else None
    if size != 20 * count:
        raise DataError(f"{shard.path} has {size} bytes, must have {20 * count}; {RESTART}")
    if not count:
        return [np.zeros(0, np.uint64)] * 3
    high = np.memmap(shard.path, "<u8", "r", 0, count)
    begin = int(np.searchsorted(high, np.uint64(first)))
    end = count if stop == 2**64 else int(np.searchsorted(high, np.uint64(stop)))
    low = np.memmap(shard.path, "<u8", "r", 8 * count, count)
    places = np.memmap(shard.path, "<u4", "r", 16 * count, count)
    if end > begin and int(places[begin:end].max()) >= count:
        raise DataError(f"{shard.path} has hashes of documents that are not there; {RESTART}")
    return [np.array(column[begin:end], np.uint64) for column in (high, low, places)]
