"""How a document becomes a set of shingles, a signature and keys of bands: the settings, and the work on a batch.

Place in the flow: `feature_file` stores what `describe` makes. Invariant: features of two documents may be compared if
and only if their schemes are equal.

The permutations are those of datasketch 2 (`affine32`): a signature is bit for bit what `MinHash` makes of the same
32-bit shingle hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cptron.corpus import kernels
from cptron.corpus.dedup.s_curve import best_bands
from cptron.corpus.dedup.words import UNICODE_VERSION, composed, folding_table, packed

Unit = Literal["words", "characters"]
KERNEL_VERSION = 1
"""Raised when the kernels give other hashes than before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """What decides the features of a document."""

    unit: Unit = "words"
    shingle_size: int = 5
    """Words, or characters, of a shingle; a document with fewer is one shingle."""
    bands: int
    rows: int
    seed: int = 1
    """Of the permutations."""

    @classmethod
    def of(
        cls,
        threshold: float,
        *,
        permutations: int = 128,
        false_positive_weight: float = 0.002,
        unit: Unit = "words",
        shingle_size: int = 5,
    ) -> Scheme:
        """With the bands and rows that `threshold` leads to.

        Candidates are compared exactly, so a false one costs about a microsecond and a missed one is lost: hence the
        small weight.
        """
        bands, rows = best_bands(threshold, permutations, false_positive_weight)
        return cls(unit=unit, shingle_size=shingle_size, bands=bands, rows=rows)

    def record(self) -> dict[str, Any]:
        """Everything that features depend on, as JSON has it."""
        return {**asdict(self), "unicode": UNICODE_VERSION, "kernel": KERNEL_VERSION}


@dataclass(frozen=True, slots=True)
class Described:
    """A batch of N documents."""

    sets: NDArray[np.uint32]
    """Shingle hashes, of each document sorted and distinct."""
    starts: NDArray[np.int64]
    """[N + 1]: where each document's begin."""
    keys: NDArray[np.uint64]
    """[bands, N]."""
    num_words: NDArray[np.int64]
    """[N]: words or characters."""


@cache
def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd multipliers and addends, drawn as datasketch draws them."""
    generator = np.random.RandomState(seed)
    multipliers = generator.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return multipliers, generator.randint(0, 1 << 32, count, dtype=np.uint32)


def shingles(
    texts: Sequence[str], unit: Unit, size: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Sets, their starts, and numbers of words; see `Described`."""
    text, starts = packed([composed(text) for text in texts])
    sets, set_starts, words = kernels.shingle_sets(text, starts, folding_table(), size, unit == "characters")
    return sets, set_starts, words


def describe(texts: Sequence[str], scheme: Scheme) -> Described:
    """Features of a batch of documents; other threads run meanwhile."""
    sets, starts, words = shingles(texts, scheme.unit, scheme.shingle_size)
    return Described(sets, starts, keys_of(sets, starts, scheme), words)


def keys_of(sets: NDArray[np.uint32], starts: NDArray[np.int64], scheme: Scheme) -> NDArray[np.uint64]:
    """[bands, N] keys of N sets."""
    signatures = kernels.signatures(sets, starts, *permutations(scheme.bands * scheme.rows, scheme.seed))
    keys: NDArray[np.uint64] = kernels.band_keys(signatures, scheme.rows)
    return keys
