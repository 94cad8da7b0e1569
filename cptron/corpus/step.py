"""What a step of a pipeline is: the two kinds that the runner knows, to be derived from.

Place in the flow: files in `steps/` define steps, `registry` finds them by name, `run` carries them through the shards.
Invariant: what a step does is a function of its configuration, its files, its seed and the documents, in their order;
never of workers, time or machine. So the runner may cut, kill and repeat the work as it likes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.sealed import read_sealed, write_sealed
from cptron.errors import DataError

Tally = Counter[str]
"""Whatever else a step counts, by name (`email` redacted, `language vi` seen); summed over shards for the report."""
C = TypeVar("C")
FIGURES = "figures.json"
"""What `decide` may write beside its decision, for the report: a JSON object of numbers by name."""


class Step(ABC, Generic[C]):
    """Base of both kinds. Made cheaply, in any process, from its typed configuration; `open` does what is dear."""

    version: ClassVar[int] = 1
    """Raised when the same configuration gives other results than before."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions (names as pip has them) whose versions decide the result; `open` imports them."""

    def __init__(self, name: str, config: C, seed: int) -> None:
        self.name = name
        """Unique in the pipeline; the report has it."""
        self.config = config
        self.seed = seed
        """Of this step: from the pipeline's seed and the step's name."""

    @classmethod
    def problem(cls, config: C) -> str:
        """What is wrong with `config` beyond types, as `value, rule; remedy` on one line; empty if nothing is."""
        return ""

    def files(self) -> Sequence[Path]:
        """Files that decide the result (models, lists): hashed into the fingerprint, and missing ones are refused."""
        return ()

    def open(self) -> None:
        """Import packages and load models, once in each process that uses the step. Raises a `CptronError`."""

    def said(self) -> str:
        """One line for who ran it, about this run and not the corpus, such as what it has cost; empty for nothing."""
        return ""


class MapStep(Step[C]):
    """Looks at one document at a time."""

    batch_documents: ClassVar[int] = 1
    """Documents that `apply_batch` is given at once, fewer at the end of a shard."""

    @abstractmethod
    def apply(self, document: Document, tally: Tally) -> Result:
        """What becomes of `document`."""

    def apply_batch(self, documents: Sequence[Document], tally: Tally) -> list[Result]:
        """The results in order; to be overridden together with `batch_documents` where many at once are faster."""
        return [self.apply(document, tally) for document in documents]


@dataclass(frozen=True, slots=True)
class ShardFeatures:
    """What a corpus step's first pass made of one shard."""

    shard: int
    """Shards are numbered in the order of the inputs: where documents are alike, the first one may be kept."""
    path: Path
    """What `features` wrote."""
    num_documents: int
    """Documents that came to this step in the shard."""
    documents: Callable[[], Iterator[Document]]
    """Reads them again, in order."""


class CorpusStep(Step[C]):
    """Looks at the whole corpus: `features` of each shard, then `decide` once, then `applied` to each shard."""

    reasons: ClassVar[tuple[str, ...]] = ()
    """Code n of a verdict, from 1, drops for reason n - 1; 0 keeps."""

    @abstractmethod
    def features(self, documents: Iterable[Document], path: Path, tally: Tally) -> None:
        """First pass over one shard: write the file `path`. Shards are done in any order, by several processes."""

    @abstractmethod
    def decide(self, shards: Sequence[ShardFeatures], decided: Path, workers: int) -> None:
        """Once, with the features of all shards: write whatever `applied` needs into the empty directory `decided`.

        A step that only keeps or drops calls `write_verdicts` for every shard. Files must not depend on `workers`.
        """

    def applied(self, decided: Path, shard: int) -> Callable[[Document, Tally], Result]:
        """Second pass over one shard: called with its documents in order. Here: keeps or drops by the verdicts."""
        codes = each_verdict(decided, shard)

        def verdict(document: Document, tally: Tally) -> Result:
            code = next(codes)
            return Dropped(self.reasons[code - 1]) if code else document

        return verdict

    def write_verdicts(self, decided: Path, shard: ShardFeatures, codes: NDArray[np.uint8]) -> None:
        """Record one code for each document of `shard`, in order."""
        assert codes.dtype == np.uint8 and len(codes) == shard.num_documents
        assert not len(codes) or int(codes.max()) <= len(self.reasons)
        write_sealed(_verdict_path(decided, shard.shard), codes.tobytes())


def read_verdicts(decided: Path, shard: int) -> NDArray[np.uint8]:
    """Codes of a shard's documents. Raises DataError where they are missing or damaged."""
    return np.frombuffer(read_sealed(_verdict_path(decided, shard)), np.uint8)


def each_verdict(decided: Path, shard: int) -> Iterator[int]:
    """The same, one by one. The one after the last raises DataError: nothing else may end a shard's documents."""
    codes = read_verdicts(decided, shard)
    yield from codes.tolist()
    raise DataError(
        f"{_verdict_path(decided, shard)} has {len(codes)} verdicts, must have one a document; run the same command "
        "with --restart"
    )


def _verdict_path(decided: Path, shard: int) -> Path:
    return decided / f"{shard:05d}.verdicts"
