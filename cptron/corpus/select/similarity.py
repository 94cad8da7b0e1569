"""Cosine of documents to the mean of examples, over hashed TF-IDF.

Place in the flow: `steps/dacp`, where `embedding: tfidf`. Invariant: document frequencies are those of the corpus; the
examples have no part in them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.select.ngrams import MOST_BUCKETS, bucket_counts
from cptron.corpus.select.sparse import SparseRows

BUCKETS = MOST_BUCKETS


def words_of(text: str) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Counts of single words by bucket."""
    return bucket_counts(text, BUCKETS, 1)


def inverse_frequencies(document_counts: NDArray[np.int64], documents: int) -> NDArray[np.float64]:
    """log((1 + N) / (1 + n)) + 1 for each bucket."""
    return np.asarray(np.log((1 + documents) / (1 + document_counts)) + 1)


def mean_direction(texts: Iterable[str], inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the unit vectors of examples."""
    total, count = np.zeros(BUCKETS), 0
    for text in texts:
        rows = SparseRows.of([words_of(text)])
        weights = _weights(rows, inverse)
        norm = float(np.sqrt((weights**2).sum()))
        if norm:
            total[rows.buckets] += weights / norm
        count += 1
    return total / max(1, count)


def cosines(
    rows: SparseRows, inverse: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each row to `direction`; 0 for an empty one."""
    weights = _weights(rows, inverse)
    norms = np.sqrt(rows.row_sums(weights**2)) * np.sqrt((direction**2).sum())
    dots = rows.row_sums(weights * direction[rows.buckets])
    return np.asarray(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0))


def vector_cosines(vectors: NDArray[np.float32], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row of dense vectors."""
    exact = vectors.astype(np.float64)
    norms = np.sqrt((exact**2).sum(axis=1)) * np.sqrt((direction**2).sum())
    dots = (exact * direction).sum(axis=1)
    return np.asarray(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0))


def _weights(rows: SparseRows, inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((1 + np.log(rows.counts)) * inverse[rows.buckets])
