"""Clusters of millions of made documents: time and memory when everything but the hashes of shingles is real.

Usage: python -m benchmarks.curate.scale features|decide DIRECTORY DOCUMENTS
Prints one JSON object.

Place in the flow: `rows_scale` runs it. Invariant: document i of N is made from i alone; the last tenth are near-copies
of the first, of Jaccard index 38/42, each in another file than its original.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.dedup.cluster import Sources, cluster
from cptron.corpus.dedup.feature_file import FeatureFile, write_described
from cptron.corpus.dedup.keep import decide
from cptron.corpus.dedup.scheme import Described, Scheme, keys_of

SHARD_DOCUMENTS = 200_000
SET_HASHES = 40
CHANGED_HASHES = 2
COPIES = 10
"""One document in so many is a copy."""
SCHEME = Scheme.of(0.8)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 of each number."""
    with np.errstate(over="ignore"):
        z = values * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def sets_of(first: int, stop: int, total: int) -> NDArray[np.uint32]:
    """Sets of documents [first, stop) of `total`."""
    number = np.arange(first, stop, dtype=np.uint64)[:, None]
    copies = np.uint64(total - total // COPIES)
    family = np.where(number < copies, number, number - copies)
    place = np.arange(SET_HASHES, dtype=np.uint64)[None, :]
    owner = np.where((number >= copies) & (place < CHANGED_HASHES), number, family)
    hashes = mixed(owner * np.uint64(64) + place).astype(np.uint32)
    hashes.sort(axis=1)
    return hashes


def make_features(directory: Path, total: int) -> None:
    """Write the files of features."""
    directory.mkdir(parents=True)
    for shard, first in enumerate(range(0, total, SHARD_DOCUMENTS)):
        stop = min(first + SHARD_DOCUMENTS, total)
        sets = sets_of(first, stop, total)
        starts = np.arange(len(sets) + 1, dtype=np.int64) * SET_HASHES
        words = np.full(len(sets), SET_HASHES)
        described = Described(sets.ravel(), starts, keys_of(sets.ravel(), starts, SCHEME), words)
        rows = [(0, SET_HASHES, number) for number in range(first, stop)]
        names = [b"made#%d" % number for number in range(first, stop)]
        write_described([described], rows, names, directory / f"{shard:05d}.features", SCHEME)


def count_dropped(directory: Path) -> dict[str, int]:
    """Decide about all of them."""
    files = [FeatureFile(path) for path in sorted(directory.glob("*.features"))]
    clusters = cluster(Sources(files, 0, SCHEME), 0.8)
    dropped = sum(int((decision.codes != 0).sum()) for decision in decide(clusters, "first"))
    return {"dropped": dropped, **clusters.counts}


def main(words: list[str]) -> int:
    """Command line."""
    directory, total = Path(words[1]), int(words[2])
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = make_features(directory, total) if words[0] == "features" else count_dropped(directory)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    size = sum(path.stat().st_size for path in directory.glob("*.features"))
    print(json.dumps({**(found or {}), "wall_s": wall_s, "cpu_s": cpu_s, "bytes": size}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
