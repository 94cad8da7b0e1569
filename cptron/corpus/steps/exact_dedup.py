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
from cptron.corpus.sealed import read_sealed, write_sealed
from cptron.corpus.step import CorpusStep, ShardFeatures, Tally

_HASH = np.dtype([("high", "<u8"), ("low", "<u8")])
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

    reasons = ("duplicate",)

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """128 bits of each document."""
        hashes = [
            hashlib.blake2b(self._key(document.text), digest_size=16).digest() for document in documents
        ]
        write_sealed(path, b"".join(hashes))

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """A later hash that was there before is a duplicate. Hashes are looked at in ranges, so that memory is bounded
        by a byte a document and `_AT_ONCE` hashes."""
        total = sum(shard.num_documents for shard in shards)
        parts = max(1, -(-total // _AT_ONCE))
        codes = np.zeros(total, np.uint8)
        for part in range(parts):
            self._mark(shards, part, parts, codes)
        start = 0
        for shard in shards:
            self.write_verdicts(decided, shard, codes[start : start + shard.num_documents])
            start += shard.num_documents

    def _mark(self, shards: Sequence[ShardFeatures], part: int, parts: int, codes: NDArray[np.uint8]) -> None:
        """Duplicates among the hashes of one range."""
        places: list[NDArray[np.int64]] = []
        hashes: list[NDArray[np.void]] = []
        start = 0
        for shard in shards:
            found = np.frombuffer(read_sealed(shard.path), _HASH)
            # The range of a hash, from its upper 32 bits.
            mine = np.flatnonzero(
                (found["high"] >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part
            )
            places.append(mine + start)
            hashes.append(found[mine])
            start += shard.num_documents
        place, key = np.concatenate(places), np.concatenate(hashes)
        order = np.lexsort((place, key["low"], key["high"]))
        key = key[order]
        same = (key["high"][1:] == key["high"][:-1]) & (key["low"][1:] == key["low"][:-1])
        codes[place[order[1:][same]]] = 1

    def _key(self, text: str) -> bytes:
        if self.config.same == "spaces":
            text = " ".join(text.split())
        elif self.config.same == "words":
            text = " ".join(_WORDS.findall(text.casefold()))
        return text.encode()
