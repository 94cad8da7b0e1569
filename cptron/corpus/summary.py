"""The counts of all shards, added up: what the manifest and the report are made of.

Place in the flow: `publish` reads what the units left. Invariant: sums are checked here: what one step let through is
what the next one got, and nothing is lost between reading and writing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cptron.corpus.counts import Amount, StepCounts, step_counts
from cptron.corpus.sealed import RESTART, read_record
from cptron.corpus.stages import Stage
from cptron.corpus.step import FIGURES
from cptron.corpus.work import Unit, Work
from cptron.errors import DataError
from cptron.json_text import parse_json


@dataclass(slots=True)
class SourceSums:
    """One source, from its files to its output."""

    text_key: str = ""
    """Where its records have their text, as given or as found; files of text have no keys."""
    records: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    read: Amount = field(default_factory=Amount)
    """What came to the first step."""
    written: Amount = field(default_factory=Amount)
    tokens: int = 0
    steps: dict[str, StepCounts] = field(default_factory=dict)
    """By name, in the pipeline's order; steps that do not look at the source are not there."""


@dataclass(slots=True)
class Summary:
    """The whole corpus."""

    sources: dict[str, SourceSums]
    steps: dict[str, StepCounts]
    """Over all sources, in the pipeline's order."""
    inputs: list[dict[str, Any]]
    """Records of the first stage's shards, in order."""
    outputs: list[dict[str, Any]]
    """Records of the last stage's shards, in order."""
    other_cpu_s: float
    """Reading, writing, and whatever is no step's."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """By step: what a decision says of itself, in numbers by name."""

    @property
    def records(self) -> int:
        """Read from the input."""
        return sum(source.records for source in self.sources.values())

    @property
    def rejected(self) -> Counter[str]:
        """Damaged records by reason."""
        return sum((source.rejected for source in self.sources.values()), Counter())


def summarise(work: Work) -> Summary:
    """Add up all units, which must be done. Raises DataError where their counts do not fit together."""
    sources = {source.config.name: SourceSums(source.text_key) for source in work.corpus.sources}
    steps = {step.name: StepCounts(step.name) for step in work.config.steps}
    summary = Summary(sources, steps, [], [], 0.0)
    before: list[int] = []
    for stage in work.stages:
        written: list[int] = []
        for number, record in enumerate(_records(work, stage)):
            source = sources[record["source"]]
            counts = [step_counts(content) for content in record["steps"]]
            _add_steps(source, steps, counts)
            summary.other_cpu_s += record["cpu_s"] - sum(one.cpu_s for one in counts)
            read = before[number] if before else record["records"] - sum(record["rejected"].values())
            _check(record, counts, read, stage)
            written.append(record["documents"])
            del record["steps"]  # added up: with its samples the largest part of a record
            if stage.number == 0:
                _add_read(source, record, counts)
                summary.inputs.append(record)
            if stage.tail is None:
                source.written.add(record["text_bytes"], record["documents"])
                source.tokens += record["tokens"] or 0
                summary.outputs.append(record)
        before = written
        if stage.tail is not None:
            _add_features(work, stage, steps[stage.tail.name])
            figures = work.directory / stage.decided / "decision" / FIGURES
            if figures.is_file():
                summary.figures[stage.tail.name] = _figures(figures)
    return summary


def _records(work: Work, stage: Stage) -> Iterator[dict[str, Any]]:
    for unit in work.units("map", stage):
        yield _record(work, unit)


def _record(work: Work, unit: Unit) -> dict[str, Any]:
    return read_record(work.record_path(unit))


def _figures(path: Path) -> dict[str, float]:
    try:
        found = parse_json(path.read_bytes())
        if isinstance(found, dict) and all(type(value) in (int, float) for value in found.values()):
            return found
        raise ValueError("it is no object of numbers")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {RESTART}") from None


def _add_steps(source: SourceSums, steps: dict[str, StepCounts], counts: list[StepCounts]) -> None:
    for one in counts:
        source.steps.setdefault(one.name, StepCounts(one.name)).plus(one)
        steps[one.name].plus(one)


def _add_read(source: SourceSums, record: dict[str, Any], counts: list[StepCounts]) -> None:
    source.records += record["records"]
    source.rejected.update(record["rejected"])
    first = counts[0].came if counts else Amount(record["documents"], record["text_bytes"])
    source.read.plus(first)


def _check(record: dict[str, Any], counts: list[StepCounts], read: int, stage: Stage) -> None:
    """The counts of a shard, from end to end; `read` documents went in."""
    chain = [(one.came, one.left) for one in counts]
    ends = [left for _, left in chain]
    begins = [*(came for came, _ in chain[1:]), Amount(record["documents"], record["text_bytes"])]
    came = chain[0][0].documents if chain else record["documents"]
    if (chain and ends != begins) or not all(one.is_whole for one in counts) or read != came:
        raise DataError(
            f"{stage.shown} of {record['source']} lost documents between its steps; report this as a bug"
        )


def _add_features(work: Work, stage: Stage, counts: StepCounts) -> None:
    for unit in work.units("features", stage):
        record = _record(work, unit)
        counts.tally.update(record["tally"])
        counts.cpu_s += record["cpu_s"]
