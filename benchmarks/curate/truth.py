"""All pairs of a corpus that are similar by the exact Jaccard index of their shingles, and a result judged by them.

Usage: python -m benchmarks.curate.truth CORPUS.jsonl PAIRS.npy THRESHOLD

Place in the flow: `rows_dedup` judges every tool with it. Invariant: shares no code with the package; finds every pair.

A pair of index t shares one of the first |A| - ceil(t |A|) + 1 shingles of both, whatever the order of all shingles
(prefix filter, Bayardo et al. 2007). With the rarest first, few pairs are left to be compared.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.curate.sides import documents, shingles

Pair = tuple[int, int]


def similar_pairs(texts: Sequence[str], threshold: float) -> list[Pair]:
    """Every pair (smaller number first) of an index of at least `threshold`."""
    hashes = [np.unique(np.array([hash(shingle) for shingle in shingles(text)], np.int64)) for text in texts]
    edges = np.cumsum([0, *(len(members) for members in hashes)])
    _, numbers, counts = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
    sets = [numbers[begin:end] for begin, end in pairwise(edges)]
    del hashes
    postings: defaultdict[int, list[int]] = defaultdict(list)
    same: defaultdict[bytes, list[int]] = defaultdict(list)  # equal sets would be in each other's way
    for number, members in enumerate(sets):
        same[members.tobytes()].append(number)
    for equal in same.values():
        number, members = equal[0], sets[equal[0]]
        rarest = members[np.lexsort((members, counts[members]))]
        for shingle in rarest[: len(members) - math.ceil(threshold * len(members) - 1e-9) + 1].tolist():
            postings[shingle].append(number)
    candidates = _candidates(postings.values(), [len(members) for members in sets], threshold)
    found = [pair for pair in candidates if _jaccard(sets[pair[0]], sets[pair[1]]) >= threshold - 1e-12]
    groups = {equal[0]: equal for equal in same.values() if len(sets[equal[0]])}
    pairs = [(min(a, b), max(a, b)) for left, right in found for a in groups[left] for b in groups[right]]
    return sorted(pairs + [pair for equal in groups.values() for pair in combinations(equal, 2)])


def _candidates(postings: Iterable[list[int]], sizes: Sequence[int], threshold: float) -> list[Pair]:
    found: set[int] = set()
    width = len(sizes)
    for members in postings:
        for left, right in combinations(members, 2):
            if min(sizes[left], sizes[right]) >= threshold * max(sizes[left], sizes[right]) - 1e-9:
                found.add(min(left, right) * width + max(left, right))
    return [divmod(code, width) for code in sorted(found)]


def _jaccard(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    shared = len(np.intersect1d(left, right, assume_unique=True))
    together = len(left) + len(right) - shared
    return shared / together if together else 0.0


@dataclass(frozen=True)
class Worth:
    """Of what a tool kept."""

    recall: float
    """Share of the similar pairs of which not both are left."""
    precision: float
    """Share of the dropped documents that are similar to another document."""
    dropped: int


def worth(kept: NDArray[np.bool_], pairs: Sequence[Pair]) -> Worth:
    """Judge a result."""
    table = np.array(pairs, np.int64).reshape(-1, 2)
    both_left = kept[table[:, 0]] & kept[table[:, 1]]
    has_similar = np.zeros(len(kept), bool)
    has_similar[table.ravel()] = True
    dropped = int((~kept).sum())
    recall = 1.0 - float(both_left.mean()) if len(table) else 1.0
    return Worth(recall, float(has_similar[~kept].mean()) if dropped else 1.0, dropped)


if __name__ == "__main__":  # a process of its own: what it takes is not counted to the tools
    every = [record["text"] for record in documents(Path(sys.argv[1]))]
    np.save(sys.argv[2], np.array(similar_pairs(every, float(sys.argv[3])), np.int64).reshape(-1, 2))
