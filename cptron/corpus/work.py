"""The units of work: a shard through a stage, features of a shard, the hash of an input file.

Place in the flow: `run` says which units are missing, an executor has processes do them here, in any order.
Invariant: a unit's files are a function of the fingerprint in their directory's name and of the shard; its JSON comes
last, by a rename, so that a unit is done, or is not. Two processes at one unit each write files of their own: whoever
renames last, the bytes are the same.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cptron.corpus.counts import StepCounts
from cptron.corpus.document import Document, Dropped
from cptron.corpus.quarantine import Quarantine
from cptron.corpus.read import raw_of, read_documents
from cptron.corpus.registry import AnyStep
from cptron.corpus.schema import CurateConfig, StepConfig
from cptron.corpus.sealed import RESTART, read_record, write_record
from cptron.corpus.shard_file import SUFFIX, ShardWriter, read_shard
from cptron.corpus.shards import Corpus, Shard
from cptron.corpus.stages import STAGE_LEVEL, Stage, build_step
from cptron.corpus.step import CorpusStep, MapStep
from cptron.corpus.through import Sized, through_call, through_step
from cptron.corpus.token_counter import TokenCounter
from cptron.durable import replacing
from cptron.errors import DataError
from cptron.tokens.manifest import hash_file
from cptron.tokens.records import Reject

Kind = Literal["map", "features", "hash"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to do, by one process."""

    kind: Kind
    stage: int
    """0 for `hash`."""
    number: int
    """Of the shard; for `hash`, of the file among all input files."""
    weight: int
    """Bytes, for the progress bar."""


@dataclass
class Work:
    """Everything that a process needs to do a unit; sent to each worker once."""

    config: CurateConfig
    corpus: Corpus
    stages: list[Stage]
    directory: Path
    _opened: dict[str, AnyStep] = field(default_factory=dict)
    _counter: TokenCounter | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_counter": None}

    def units(self, kind: Kind, stage: Stage) -> list[Unit]:
        """Those of a stage that there are, in order."""
        if kind == "hash":
            return [Unit(kind, 0, number, size) for number, (_, _, size, _) in enumerate(self.files)]
        shards = self.corpus.shards
        if kind == "features":
            shards = tuple(shard for shard in shards if concerns(stage.tail, self.source_name(shard)))
        return [Unit(kind, stage.number, shard.number, shard.stored_bytes) for shard in shards]

    def is_done(self, unit: Unit) -> bool:
        """Whether its files are there."""
        record = self.record_path(unit)
        if not record.is_file():
            return False
        return unit.kind != "map" or shard_path(self.stage_dir(unit), unit.number).is_file()

    def do(self, unit: Unit) -> None:
        """Do it, unless another process at the same units has done it meanwhile. Raises a `CptronError`."""
        try:
            if self.is_done(unit):
                return
            {"map": self._map, "features": self._features, "hash": self._hash}[unit.kind](unit)
        except OSError as error:
            where = error.filename or self.directory
            raise DataError(
                f"{where} cannot be read or written ({error.strerror}); mend that and run the same command again"
            ) from error

    def stage_dir(self, unit: Unit) -> Path:
        """Directory of the unit's files."""
        if unit.kind == "hash":
            return self.directory / "inputs"
        stage = self.stages[unit.stage]
        return self.directory / (stage.name if unit.kind == "map" else stage.decided)

    def places(self) -> list[Path]:
        """Directories that anything is written in: the output's, and those of stages of this and earlier settings."""
        return [self.directory.parent, self.directory, *filter(Path.is_dir, self.directory.iterdir())]

    def record_path(self, unit: Unit) -> Path:
        """The unit's JSON."""
        if unit.kind == "hash":
            name, _, size, changed = self.files[unit.number]
            digest = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=10).hexdigest()
            return self.stage_dir(unit) / f"{digest}-{size}-{changed}.json"
        return self.stage_dir(unit) / f"{unit.number:05d}.json"

    @cached_property
    def files(self) -> list[tuple[str, Path, int, int]]:
        """All input files, in order."""
        return [file for source in self.corpus.sources for file in source.files]

    def source_name(self, shard: Shard) -> str:
        """Name of a shard's source."""
        return self.corpus.sources[shard.source].config.name

    def _map(self, unit: Unit) -> None:
        stage, shard = self.stages[unit.stage], self.corpus.shards[unit.number]
        directory = self.stage_dir(unit)
        level = STAGE_LEVEL if stage.tail else self.config.corpus.compression_level
        started_s = time.process_time()
        with (
            Quarantine(directory, unit.number) as quarantine,
            ShardWriter(shard_path(directory, unit.number), level) as writer,
        ):
            steps: list[StepCounts] = []
            documents = self._through(stage, shard, steps, quarantine)
            counter = self._token_counter(stage)
            num_documents = text_bytes = 0
            for document, num_bytes in documents:
                writer.write(document)
                num_documents, text_bytes = num_documents + 1, text_bytes + num_bytes
                if counter:
                    counter.add(document.text)
            tokens = int(counter.counts().sum()) if counter else None
            if self.is_done(unit):  # by another process: the same bytes, and what it counted stays with them
                return
            quarantine.publish()
            file = writer.publish()
        self._publish(unit, {
            "source": self.source_name(shard),
            "records": sum(quarantine.records),
            "records_of_pieces": quarantine.records,
            "rejected": dict(sorted(quarantine.rejected.items())),
            "steps": [counts.as_json() for counts in steps],
            "documents": num_documents,
            "text_bytes": text_bytes,
            "tokens": tokens,
            "file": asdict(file),
            "cpu_s": time.process_time() - started_s,
        })  # fmt: skip

    def _through(
        self, stage: Stage, shard: Shard, steps: list[StepCounts], quarantine: Quarantine
    ) -> Iterator[Sized]:
        """The shard's documents behind all steps of the stage; `steps` gets their counts, one by one."""
        source = self.source_name(shard)

        def broken(document: Document, why: Dropped) -> None:
            quarantine.add(Reject(document.id, 0, "step_failed", why.detail, raw_of(document)), None)

        documents = self._sized(stage, shard, quarantine)
        if stage.head and concerns(stage.head, source):
            steps.append(StepCounts(stage.head.name))
            head = self._open(stage.head)
            assert isinstance(head, CorpusStep)
            decided = self.directory / self.stages[stage.number - 1].decided / "decision"
            documents = through_call(head.applied(decided, shard.number), steps[-1], documents, broken)
        for config in stage.maps:
            if concerns(config, source):
                step = self._open(config)
                assert isinstance(step, MapStep)
                steps.append(StepCounts(config.name))
                documents = through_step(step, steps[-1], documents, broken)
        return documents

    def _sized(self, stage: Stage, shard: Shard, quarantine: Quarantine) -> Iterator[Sized]:
        if stage.number:
            path = shard_path(self.directory / self.stages[stage.number - 1].name, shard.number)
            wanted = read_record(path.with_name(f"{shard.number:05d}.json"))["documents"]
            found = 0
            for document in read_shard(path):
                found += 1
                yield document, document.num_bytes
            if found != wanted:
                raise DataError(f"{path} has {found} documents, must have {wanted}; {RESTART}")
            return
        source = self.corpus.sources[shard.source]
        limit = self.config.corpus.max_document_bytes
        for record in read_documents(shard, source, limit, quarantine.records):
            if isinstance(record, Reject):
                quarantine.rejected[record.reason] += 1
                quarantine.add(record, len(quarantine.records) - 1)
            else:
                yield record, record.num_bytes

    def _features(self, unit: Unit) -> None:
        stage = self.stages[unit.stage]
        assert stage.tail is not None
        step = self._open(stage.tail)
        assert isinstance(step, CorpusStep)
        path = features_path(self.stage_dir(unit), unit.number)
        tally: Counter[str] = Counter()
        started_s = time.process_time()
        with replacing(path) as partial:
            step.features(read_shard(shard_path(self.directory / stage.name, unit.number)), partial, tally)
        self._publish(unit, {"tally": tally, "cpu_s": time.process_time() - started_s})

    def _hash(self, unit: Unit) -> None:
        name, path, _, _ = self.files[unit.number]
        record = hash_file(path)
        self._publish(unit, {"name": name, **asdict(record)})

    def _publish(self, unit: Unit, record: dict[str, Any]) -> None:
        write_record(self.record_path(unit), record)

    def _open(self, config: StepConfig) -> AnyStep:
        step = self._opened.get(config.name)
        if step is None:
            step = build_step(self.config, config)
            step.open()
            self._opened[config.name] = step
        return step

    def _token_counter(self, stage: Stage) -> TokenCounter | None:
        if stage.tail or not self.config.corpus.tokenizer:
            return None
        if self._counter is None:
            self._counter = TokenCounter(self.config.corpus.tokenizer)
        return self._counter


def concerns(step: StepConfig | None, source: str) -> bool:
    """Whether the step looks at documents of `source`."""
    return step is not None and (not step.sources or source in step.sources)


def shard_path(directory: Path, number: int) -> Path:
    """Documents of a shard."""
    return directory / f"{number:05d}{SUFFIX}"


def features_path(directory: Path, number: int) -> Path:
    """A corpus step's features of a shard."""
    return directory / f"{number:05d}.features"
