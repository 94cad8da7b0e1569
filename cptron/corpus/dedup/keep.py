"""Which document of a cluster is kept.

Place in the flow: after `cluster`; the step records what comes out. Invariant: exactly one document of a cluster is
kept, none where a document of an earlier corpus is in it; which one depends on the documents alone, with `first` also
on their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.dedup.cluster import Clusters

Rule = Literal["first", "longest"]
KEPT, LIKE_ANOTHER, LIKE_EARLIER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Decision:
    """About one file of features."""

    file: int
    """Index into the files."""
    codes: NDArray[np.uint8]
    """`KEPT`, `LIKE_ANOTHER` or `LIKE_EARLIER` for each document."""
    originals: NDArray[np.uint32]
    """For each dropped document, in order, the number of the document that stays in its place."""


def decide(clusters: Clusters, rule: Rule) -> Iterator[Decision]:
    """One decision for each file that is not of an earlier corpus, in order.

    Within a cluster the better rank of source wins, then (`longest`) the longer text, then, of texts of one length, the
    smaller hash of the text, and in the end the order.
    """
    sources = clusters.sources
    starts = sources.first_documents()
    winners = _winners(clusters, rule)
    first_new = starts[sources.num_earlier]
    for file in range(sources.num_earlier, len(sources.files)):
        begin, end = starts[file], starts[file + 1]
        roots = clusters.roots(begin, end)
        kept = roots.copy()
        chosen = _positions(winners[:, 0], roots)
        kept[chosen >= 0] = winners[chosen[chosen >= 0], 1]
        dropped = kept != np.arange(begin, end, dtype=np.uint32)
        codes = np.where(dropped, np.where(kept < first_new, LIKE_EARLIER, LIKE_ANOTHER), KEPT)
        yield Decision(file, codes.astype(np.uint8), kept[dropped])


def names_of(clusters: Clusters, documents: NDArray[np.uint32]) -> dict[int, str]:
    """Names of documents by their numbers."""
    starts = np.array(clusters.sources.first_documents())
    numbers = np.unique(documents).astype(np.int64)
    files = np.searchsorted(starts, numbers, side="right") - 1
    return {
        number: clusters.sources.files[file].name_of(place)
        for number, file, place in zip(
            numbers.tolist(), files.tolist(), (numbers - starts[files]).tolist(), strict=True
        )
    }


def _winners(clusters: Clusters, rule: Rule) -> NDArray[np.uint32]:
    """[n, 2] sorted: first document of a cluster, and the one that is kept, where that may be another."""
    sources = clusters.sources
    new = range(sources.num_earlier, len(sources.files))
    none = np.zeros((0, 2), np.uint32)
    if rule == "first" and len({rank for file in new for rank in _ranks(clusters, file)}) < 2:
        return none
    shared = np.unique(np.concatenate([none[:, 0], *(_roots_of_others(clusters, file) for file in new)]))
    columns = [_members(clusters, file, rule, shared) for file in new]
    if not columns:
        return none
    root, rank, length, digest, number = np.concatenate(columns, axis=1)
    order = np.lexsort((number, digest, ~length, rank, root))
    found, first = np.unique(root[order], return_index=True)
    return np.stack([found, number[order][first]], axis=1).astype(np.uint32)


def _ranks(clusters: Clusters, file: int) -> list[int]:
    ranks: list[int] = np.unique(clusters.sources.files[file].array("ranks")).tolist()
    return ranks


def _roots_of_others(clusters: Clusters, file: int) -> NDArray[np.uint32]:
    """Roots of the file's documents that are not themselves roots, nor like a document of an earlier corpus."""
    starts = clusters.sources.first_documents()
    roots = clusters.roots(starts[file], starts[file + 1])
    others = roots != np.arange(starts[file], starts[file + 1], dtype=np.uint32)
    return np.unique(roots[others & (roots >= starts[clusters.sources.num_earlier])])


def _members(clusters: Clusters, file: int, rule: Rule, shared: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """[5, n] of the file's documents whose root is in `shared` (sorted): root, rank, length, digest, number."""
    starts = clusters.sources.first_documents()
    roots = clusters.roots(starts[file], starts[file + 1])
    chosen = np.flatnonzero(_positions(shared, roots) >= 0)
    features = clusters.sources.files[file]
    columns = [roots[chosen], features.array("ranks")[chosen]]
    if rule == "longest":
        columns += [features.array("lengths")[chosen], features.array("digests")[chosen]]
    else:
        columns += [np.zeros(len(chosen)), np.zeros(len(chosen))]
    # each by itself: numpy takes integers of several types together for floats, which have too few bits for a digest
    return np.stack([column.astype(np.uint64) for column in (*columns, chosen + starts[file])])


def _positions(values: NDArray[np.uint32], wanted: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where each of `wanted` is in `values`, which are sorted; -1 for nowhere."""
    found = np.searchsorted(values, wanted)
    there = found < len(values)
    there[there] = values[found[there]] == wanted[there]
    return np.where(there, found, -1)
