"""Drops all but one of the documents that are nearly the same.

Place in the flow: a corpus step; after the filters of single documents, since what they drop need not be compared.
Invariant: what is kept is a function of the documents, their order and the settings, and of nothing else.

See docs/deduplication.md for what is similar, and what is found with which probability.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.dedup.cluster import Clusters, Sources, allow_open_files, cluster
from cptron.corpus.dedup.feature_file import FeatureFile, write_features
from cptron.corpus.dedup.index import num_files_of, open_index, publish_index, record_path
from cptron.corpus.dedup.keep import decide, names_of
from cptron.corpus.dedup.scheme import Scheme
from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.sealed import read_sealed, write_sealed
from cptron.corpus.step import CorpusStep, ShardFeatures, Tally, each_verdict

MOST_PERMUTATIONS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is alike, and what then stays."""

    threshold: float = 0.8
    """Jaccard index of the sets of shingles from which two documents are nearly the same."""
    unit: Literal["words", "characters"] = "words"
    """Of shingles. Words are lower-case runs of letters, marks and digits; in scripts without spaces between words each
    character is one. `characters` takes letters and single spaces."""
    shingle_size: int = 5
    """Words, or characters, of a shingle; about 20 characters are as selective as 5 words."""
    permutations: int = 128
    """Numbers in a signature, at most; used as bands of rows that the threshold leads to."""
    bands: int = 0
    """Of the signature; 0 to choose bands and rows by the threshold."""
    rows: int = 0
    """Of a band; 0 to choose."""
    keep: Literal["first", "longest"] = "first"
    """Document of a cluster that stays: the first in the order of the inputs, or the longest."""
    prefer_sources: tuple[str, ...] = ()
    """Names of inputs whose documents stay before those of others, the earlier the better; before `keep`."""
    earlier: tuple[str, ...] = ()
    """Directories of indexes of earlier corpora: what is like a document of theirs is dropped."""
    save_index: str = ""
    """Directory that is made an index of all documents that come to this step; empty for none."""
    most_comparisons: int = 1000
    """Documents of a bucket that one document is compared with in vain before the rest is left; such cuts are told."""

    def scheme(self) -> Scheme:
        """What decides the features."""
        if self.bands:
            return Scheme(unit=self.unit, shingle_size=self.shingle_size, bands=self.bands, rows=self.rows)
        return Scheme.of(
            self.threshold,
            permutations=self.permutations,
            unit=self.unit,
            shingle_size=self.shingle_size,
        )


class Step(CorpusStep[Config]):
    """See the module."""

    reasons = ("near_duplicate", "near_duplicate_of_earlier_corpus")

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if not 0.0 < config.threshold <= 1.0:
            return f"threshold is {config.threshold}, must be over 0 and at most 1; 0.8 is usual"
        if config.shingle_size < 1:
            return f"shingle_size is {config.shingle_size}, must be at least 1; 5 words are usual"
        if bool(config.bands) != bool(config.rows) or min(config.bands, config.rows) < 0:
            return (
                f"bands {config.bands} and rows {config.rows} must be given together; give both, or neither"
            )
        if not 1 <= max(config.permutations, config.bands * config.rows) <= MOST_PERMUTATIONS:
            used = max(config.permutations, config.bands * config.rows)
            return f"{used} permutations, must be 1 to {MOST_PERMUTATIONS}; 128 are usual"
        if config.save_index and Path(config.save_index).resolve() in map(_resolved, config.earlier):
            return f"save_index {config.save_index} is one of earlier, must be another; an index is never written to"
        if config.most_comparisons < 1:
            return f"most_comparisons is {config.most_comparisons}, must be at least 1; 1000 is usual"
        return ""

    def files(self) -> Sequence[Path]:
        """See `Step`."""
        return [record_path(Path(directory)) for directory in self.config.earlier]

    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """See `CorpusStep`."""
        wordless = write_features(documents, path, self.config.scheme(), self.config.prefer_sources)
        if wordless:
            tally["documents_without_a_word"] += wordless

    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """See `CorpusStep`."""
        with self._opened(shards) as sources:
            clusters = cluster(
                sources,
                self.config.threshold,
                workers=workers,
                most_comparisons=self.config.most_comparisons,
            )
            if clusters.counts["cut"]:
                print(
                    f"note: {self.name}: {clusters.counts['cut']} documents were not compared with all candidates; "
                    "raise most_comparisons to find more",
                    file=sys.stderr,
                )
            for decision in decide(clusters, self.config.keep):
                shard = shards[decision.file - sources.num_earlier]
                self.write_verdicts(decided, shard, decision.codes)
                _write_originals(_originals_path(decided, shard.shard), clusters, decision.originals)
        if self.config.save_index:
            publish_index([shard.path for shard in shards], Path(self.config.save_index))

    def applied(self, decided: Path, shard: int) -> Callable[[Document, Tally], Result]:
        """See `CorpusStep`."""
        codes = each_verdict(decided, shard)
        originals = iter(read_sealed(_originals_path(decided, shard)).decode().split("\n"))

        def verdict(document: Document, tally: Tally) -> Result:
            code = next(codes)
            return Dropped(self.reasons[code - 1], f"of {next(originals)}") if code else document

        return verdict

    @contextmanager
    def _opened(self, shards: Sequence[ShardFeatures]) -> Iterator[Sources]:
        files: list[FeatureFile] = []
        earlier = [Path(directory) for directory in self.config.earlier]
        allow_open_files(len(shards) + sum(map(num_files_of, earlier)))
        try:
            for directory in earlier:
                files += open_index(directory)
            num_earlier = len(files)
            for shard in shards:
                files.append(FeatureFile(shard.path))
            yield Sources(files, num_earlier, self.config.scheme())
        finally:
            for file in files:
                file.close()


def _resolved(directory: str) -> Path:
    return Path(directory).resolve()


def _originals_path(decided: Path, shard: int) -> Path:
    """Names of the documents that stay in the place of those dropped, a line each."""
    return decided / f"{shard:05d}.originals"


def _write_originals(path: Path, clusters: Clusters, originals: NDArray[np.uint32]) -> None:
    names = names_of(clusters, originals)
    lines = (names[document].replace("\n", " ") + "\n" for document in originals.tolist())
    write_sealed(path, "".join(lines).encode())
