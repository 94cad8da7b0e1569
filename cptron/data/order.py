"""The order of one epoch of one source.

Place in the flow: below `source`. Invariant: a pure function of (seed, identity of the source, epoch); the
length of the run, the number of ranks and the other sources do not enter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cptron.data.kernels import build_sample_index, shuffle


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one document."""

    document: int
    offset: int
    length: int


def key(seed: int, identity: str, epoch: int, purpose: str) -> int:
    """64-bit key of a shuffle."""
    digest = hashlib.sha256(f"{seed}|{identity}|{epoch}|{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def samples_in(num_tokens: int, seq_length: int) -> int:
    """Samples of `seq_length` predictions that `num_tokens` consecutive tokens hold: floor((n - 1) /
    seq_length)."""
    return max(0, num_tokens - 1) // seq_length


class EpochOrder:
    """Documents shuffled and concatenated, cut into samples, samples shuffled."""

    def __init__(
        self, lengths_tokens: npt.NDArray[np.int32], seq_length: int, seed: int, identity: str, epoch: int
    ) -> None:
        self._lengths = lengths_tokens
        self._seq_length = seq_length
        self._documents = shuffle(len(lengths_tokens), key(seed, identity, epoch, "documents"))
        self._index = build_sample_index(lengths_tokens, self._documents, seq_length)
        self.num_samples = len(self._index) - 1
        self._samples = shuffle(self.num_samples, key(seed, identity, epoch, "samples"))

    def locate(self, sample: int) -> list[Span]:
        """Where the `seq_length + 1` tokens of the epoch's `sample`-th sample are."""
        position, offset = (int(value) for value in self._index[self._samples[sample]])
        spans: list[Span] = []
        missing = self._seq_length + 1
        while missing:
            document = int(self._documents[position])
            length = min(missing, int(self._lengths[document]) - offset)
            if length:
                spans.append(Span(document, offset, length))
            missing -= length
            position, offset = position + 1, 0
        return spans
