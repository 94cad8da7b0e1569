"""The order of one source: which tokens its samples are, epoch by epoch.

Place in the flow: below `source`. Invariant: a pure function of (seed, identity of the source, epoch); the
length of the run, the number of ranks and the other sources do not enter.

Nothing of an epoch is stored but one number for each window of documents (64, or 1024 when packed).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cptron.data.cache import IndexCache
from cptron.data.content import Content
from cptron.data.kernels import JoinedEpoch, PackedEpoch, Tokens, joined_starts, packed_starts
from cptron.errors import DataError

Packing = Literal["joined", "best_fit"]
Arrangement = Literal["shuffled", "given"]
Int64Array = npt.NDArray[np.int64]

_VERSION = 1
_EPOCHS_KEPT = 2  # a batch can straddle the turn of an epoch


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one document."""

    document: int
    offset: int
    length: int


def key(seed: int, identity: str, epoch: int, purpose: str) -> int:
    """64-bit key of a permutation."""
    digest = hashlib.sha256(f"{seed}|{identity}|{epoch}|{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


class SourceOrder:
    """Every epoch of one source.

    `joined`: documents in a new order in each epoch, joined to one stream and cut into samples; the last
    sample of an epoch may be shorter. `best_fit`: documents, and pieces of those longer than a sample, put
    together so that no sample cuts a document that fits; the same samples in every epoch. Either way the
    samples come in a new order in each epoch.
    """

    def __init__(
        self,
        content: Content,
        learned: npt.NDArray[np.uint8],
        seq_length: int,
        seed: int,
        packing: Packing,
        cache: IndexCache | None,
        *,
        eod_mask_loss: bool = False,
        arrangement: Arrangement = "shuffled",
    ) -> None:
        files = content.tokens
        self.tokens = Tokens(
            files.lengths_tokens.view(np.uint8),
            files.start_bytes.view(np.uint8),
            files.token_ids.view(np.uint8),
            files.dtype.itemsize,
            learned,
            mask_beginnings=eod_mask_loss,
        )
        self._identity = content.identity
        self._prefix = files.prefix
        self._seq_length = seq_length
        self._seed = seed
        self._packing = packing
        self._cache = cache
        self._shuffled = arrangement == "shuffled"
        self._epochs: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def epoch(self, number: int) -> Any:
        """The kernel object of one epoch, with `num_samples`, `read`, `count` and `spans`."""
        with self._lock:  # several threads read; one of them opens
            if number not in self._epochs:
                while len(self._epochs) >= _EPOCHS_KEPT:
                    self._epochs.popitem(last=False)
                self._epochs[number] = self._open(number)
            self._epochs.move_to_end(number)
            return self._epochs[number]

    def _open(self, number: int) -> Any:
        of_documents = 0 if self._packing == "best_fit" else number
        document_key = key(self._seed, self._identity, of_documents, "documents")
        sample_key = key(self._seed, self._identity, number, "samples")
        kind = PackedEpoch if self._packing == "best_fit" else JoinedEpoch
        try:
            starts = self._starts(document_key)
            return kind(self.tokens, starts, document_key, sample_key, self._seq_length, self._shuffled)
        except ValueError as error:  # lengths that no scan has seen, because a manifest vouched for them
            raise DataError(
                f"{self._prefix} has document lengths that cannot be ({error}); copy the files again or run "
                "preprocess again"
            ) from None

    def _starts(self, document_key: int) -> Int64Array:
        """Running sums over the windows of documents, from the cache where there is one."""
        threads = len(os.sched_getaffinity(0))

        def build() -> Int64Array:
            if self._packing == "best_fit":
                packed: Int64Array = packed_starts(
                    self.tokens, document_key, self._seq_length, threads, self._shuffled
                )
                return packed
            joined: Int64Array = joined_starts(self.tokens, document_key, threads, self._shuffled)
            return joined

        if self._cache is None:
            return build()
        length = self._seq_length if self._packing == "best_fit" else 0
        order = document_key if self._shuffled else "given"
        name = f"{_VERSION}|{self._packing}|{self._identity}|{order}|{length}"
        return self._cache.get(hashlib.sha256(name.encode()).hexdigest()[:32], build)
