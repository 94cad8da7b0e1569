"""Clusters of near-duplicates in any number of feature files, in memory that does not grow with the corpus.

Place in the flow: `keep` decides by the clusters. Invariant: the clusters depend on neither the number of workers nor
the bound of memory, nor (where no comparison was cut) on the order of the files.

One band after the other is merged, in parts by the highest byte of the key, so that a part of all files fits the bound;
beyond it there are 4 bytes a document.
"""

from __future__ import annotations

import os
import resource
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus import kernels
from cptron.corpus.dedup.feature_file import FeatureFile
from cptron.corpus.dedup.scheme import Scheme
from cptron.errors import DataError

MERGED_KEYS = 1 << 21
"""Of one part, about 80 MB while they are sorted."""
MOST_DOCUMENTS = 2**32 - 1
_FILES_BESIDE = 64
"""Descriptors that the process needs for other things."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Sources:
    """Files to compare, those of earlier corpora first; documents are numbered through all of them."""

    files: Sequence[FeatureFile]
    num_earlier: int
    """Files whose documents stay, whatever is like them."""
    scheme: Scheme

    def first_documents(self) -> list[int]:
        """Number of the first document of each file, and the number of all."""
        return [0, *np.cumsum([file.num_documents for file in self.files]).tolist()]


@dataclass(slots=True)
class Clusters:
    """The result: `roots` of documents, and how they were found."""

    sources: Sources
    kernel: Any
    counts: Counter[str] = field(default_factory=Counter)
    """`candidates` (documents in buckets, over all bands), `comparisons`, `similar`, `cut` (documents that were not
    compared with all others of their bucket)."""
    edges: list[NDArray[np.uint64]] = field(default_factory=list)
    """[n, 4]: two documents that were joined, hashes they share, hashes of both together."""

    def roots(self, begin: int, end: int) -> NDArray[np.uint32]:
        """The first document of the cluster of each document in [begin, end)."""
        found: NDArray[np.uint32] = self.kernel.roots(begin, end)
        return found


def cluster(
    sources: Sources,
    threshold: float,
    *,
    workers: int = 1,
    most_comparisons: int = 1000,
    merged_keys: int = MERGED_KEYS,
    keep_edges: bool = False,
) -> Clusters:
    """Join documents of which a chain of candidates leads to each other, neighbours of a Jaccard index of at least
    `threshold` by their sets. A document is compared in vain with at most `most_comparisons` others of a bucket.

    Raises DataError where the files have other schemes or too many documents.
    """
    _check(sources)
    starts = sources.first_documents()
    places = [
        (
            file.descriptor,
            file.num_documents,
            file.num_hashes,
            file.byte_of("set_starts"),
            file.byte_of("set_hashes"),
        )
        for file in sources.files
    ]
    kernel = kernels.Clusters(
        places, starts[sources.num_earlier], round(threshold * _MILLION), most_comparisons
    )
    found = Clusters(sources, kernel)
    for keys, documents in _merged(sources, starts, workers, merged_keys):
        try:
            counts, edges = kernel.join(keys, documents)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise DataError(f"features cannot be read ({error}); make the features again") from None
        found.counts.update(counts)
        if keep_edges:
            found.edges.append(edges)
    return found


def _merged(
    sources: Sources, starts: Sequence[int], workers: int, merged_keys: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
    """Keys of all files, sorted, with the documents, part by part; `workers` threads are as many parts ahead."""
    total = sum(file.num_keys for file in sources.files)
    edges = _edges(min(256, -(-total // max(merged_keys, 1))))
    parts = deque(
        (band, first, stop) for band in range(sources.scheme.bands) for first, stop in pairwise(edges)
    )
    waiting: deque[Future[tuple[NDArray[np.uint64], NDArray[np.uint32]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while parts or waiting:
            while parts and len(waiting) < workers:
                waiting.append(pool.submit(_part, sources.files, starts, *parts.popleft()))
            yield waiting.popleft().result()


def _edges(num_parts: int) -> list[int]:
    return [256 * part // max(num_parts, 1) for part in range(max(num_parts, 1) + 1)]


def _part(
    files: Sequence[FeatureFile], starts: Sequence[int], band: int, first: int, stop: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    slices = [file.band(band, first, stop) for file in files]
    keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in slices)])
    numbers = [documents + np.uint32(start) for (_, documents), start in zip(slices, starts, strict=False)]
    documents = np.concatenate([np.zeros(0, np.uint32), *numbers])
    order = np.argsort(keys, kind="stable")  # the files are in order: so are the documents of equal keys
    return keys[order], documents[order]


def _check(sources: Sources) -> None:
    wanted = sources.scheme.record()
    for file in sources.files:
        if file.scheme != wanted:
            raise DataError(
                f"{file.path} has features of the scheme {file.scheme}, must be {wanted}; make its features again"
            )
    total = sources.first_documents()[-1]
    if total > MOST_DOCUMENTS:
        raise DataError(
            f"{total} documents, at most {MOST_DOCUMENTS} can be compared at once; curate them in parts"
        )


def allow_open_files(num_files: int) -> None:
    """Raise this process's limit so that as many feature files can be open. Raises DataError where it may not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Those of this process that are open already count too, and the limit is of numbers, of which some may be free.
    needed = num_files + max(map(int, os.listdir("/dev/fd")), default=0) + _FILES_BESIDE
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(
            f"{num_files} files of features, but {hard} may be open at once; make shards larger or raise the limit "
            "(ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
