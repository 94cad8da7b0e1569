"""Proves from a run's log which tokens it has seen: `cptron data ledger RUN`.

Place in the flow: after or during training, on any machine that has the token files; imports no torch.
Invariant: nothing is taken on trust from a checkpoint: its ledger is recomputed from the log and the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cptron.config.load import load_config
from cptron.data.ledger import Ledger
from cptron.data.log import DATA_LOG, LoggedStep, read_log
from cptron.data.open import open_sources
from cptron.data.source import TokenSource
from cptron.errors import DataError

_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Account:
    """What a run has drawn of one source, recomputed."""

    name: str
    samples: int
    tokens: int
    documents: int
    epochs: float
    largest_deviation_samples: float
    """Furthest that the source was from its share after any step, since shares were last set."""


@dataclass(frozen=True, slots=True)
class SeenRange:
    """Tokens [start, stop) of a document, read in one epoch."""

    source: str
    epoch: int
    document: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Audit:
    """The proven position of a run."""

    step: int
    accounts: list[Account]
    compared_with: list[str]
    """Checkpoints whose ledger was found equal."""
    sources: Mapping[str, TokenSource]

    def seen(self, name: str) -> Iterator[SeenRange]:
        """Every range of every document that was read of a source: epoch by epoch, by document."""
        source = self.sources[name]
        samples = next(account.samples for account in self.accounts if account.name == name)
        for epoch in range(-(-samples // source.samples_per_epoch)):
            first = epoch * source.samples_per_epoch
            last = min(samples, first + source.samples_per_epoch)
            yield from _ranges(source, epoch, range(first, last))


def audit(run: Path) -> Audit:
    """Recompute the ledger of `run`. Raises DataError when log, files and checkpoints disagree."""
    config = load_config(run / "config.yaml").config
    if config.data.order == "megatron":
        raise DataError(
            f"{run} has data.order=megatron, only cptron's own order can be recomputed; nothing to do"
        )
    sources = _all_sources(run)
    deviations = dict.fromkeys(sources, 0.0)
    last, mix_start = LoggedStep(0, {}, {}), LoggedStep(0, {}, {})
    at_step: dict[int, LoggedStep] = {}
    saved = _saved_ledgers(run)
    for step in read_log(run / DATA_LOG):
        if step.shares != last.shares:
            mix_start = step if last.step else LoggedStep(0, {}, step.shares)
        for name, deviation in _deviations(sources, mix_start, step).items():
            deviations[name] = max(deviations[name], deviation)
        if step.step in saved:
            at_step[step.step] = step
        last = step
    unknown = set(last.cursors) - set(sources)
    if unknown:
        raise DataError(
            f"{run} has drawn from {sorted(unknown)}, its config.yaml names no such source; restore it"
        )
    accounts = [
        _account(source, last.cursors.get(name, 0), deviations[name]) for name, source in sources.items()
    ]
    for number, step in at_step.items():
        _compare(sources, step, *saved[number])
    return Audit(last.step, accounts, [str(saved[number][0]) for number in at_step], sources)


def _all_sources(run: Path) -> dict[str, TokenSource]:
    """The sources of the run's configuration, and those that only an earlier one names."""
    sources: dict[str, TokenSource] = {}
    for path in [run / "config.yaml", *sorted(run.glob("config.until_step_*.yaml"), reverse=True)]:
        config = load_config(path).config
        if config.data.order == "megatron":
            raise DataError(
                f"{run} has data.order=megatron, only cptron's own order can be recomputed; nothing to do"
            )
        new = tuple(item for item in config.data.sources if item.name not in sources)
        only_new = replace(config, data=replace(config.data, sources=new))
        sources |= {source.name: source for source in open_sources(only_new)}
    return sources


def _account(source: TokenSource, samples: int, deviation: float) -> Account:
    documents, tokens = _count(source, samples)
    return Account(source.name, samples, tokens, documents, samples / source.samples_per_epoch, deviation)


def _count(source: TokenSource, samples: int) -> tuple[int, int]:
    """Documents begun and tokens predicted by the first `samples` samples."""
    documents = tokens = 0
    for first in range(0, samples, _AT_ONCE):
        found = source.count(np.arange(first, min(samples, first + _AT_ONCE)))
        documents, tokens = documents + found[0], tokens + found[1]
    return documents, tokens


def _deviations(sources: Mapping[str, TokenSource], start: LoggedStep, step: LoggedStep) -> dict[str, float]:
    """|samples drawn - share of them| of each source since the shares of `start` were set."""
    weights = {n: step.shares[n] / sources[n].predictions_per_sample for n in sources if step.shares.get(n)}
    drawn = {name: step.cursors[name] - start.cursors.get(name, 0) for name in weights}
    total, weight = sum(drawn.values()), sum(weights.values())
    return {name: abs(drawn[name] - total * weights[name] / weight) for name in weights}


def _saved_ledgers(run: Path) -> dict[int, tuple[Path, Ledger]]:
    """Step -> state file and ledger of the run's checkpoints that can be read."""
    found = {}
    for path in sorted((run / "checkpoints").glob("step_*/state.json")):
        try:
            state = json.loads(path.read_text())
            found[int(state["step"])] = path, Ledger.from_dict(state["ledger"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); remove the damaged checkpoint") from None
    return found


def _compare(sources: Mapping[str, TokenSource], step: LoggedStep, path: Path, ledger: Ledger) -> None:
    for name, entry in ledger.entries.items():
        source = sources[name]
        documents, tokens = _count(source, step.cursors[name])
        expected = (source.identity, step.cursors[name], tokens, documents)
        found = (entry.identity, entry.cursor, entry.tokens, entry.documents)
        if found != expected:
            raise DataError(
                f"{path} has source {name} at (identity, samples, tokens, documents) {found}, log and files give "
                f"{expected}; do not go on from this checkpoint"
            )


def _ranges(source: TokenSource, epoch: int, cursors: range) -> Iterator[SeenRange]:
    pieces: dict[int, list[tuple[int, int]]] = {}
    for cursor in cursors:
        for span in source.spans(cursor):
            pieces.setdefault(span.document, []).append((span.offset, span.offset + span.length))
    for document in sorted(pieces):
        start, stop = None, 0
        for first, end in sorted(pieces[document]):
            if start is None or first > stop:
                if start is not None:
                    yield SeenRange(source.name, epoch, document, start, stop)
                start, stop = first, end
            stop = max(stop, end)
        if start is not None:
            yield SeenRange(source.name, epoch, document, start, stop)
