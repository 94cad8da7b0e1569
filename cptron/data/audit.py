"""Proves from a run's log which tokens it has seen, and which it has drawn and dropped: `cptron data ledger RUN`.

Place in the flow: after or during training, on any machine that has the token files; imports no torch.
Invariant: nothing is taken on trust from a checkpoint: its ledger is recomputed from the log and the files.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.config.stored import stored_configs
from cptron.data.ledger import Entry, Ledger, account_of, length_of, source_of
from cptron.data.log import BEGINNING, DATA_LOG, LoggedStep, read_log
from cptron.data.open import open_sources
from cptron.data.replay import Replay
from cptron.data.source import TokenSource
from cptron.errors import CheckpointError, DataError
from cptron.json_text import parse_json
from cptron.tokens.curated import read_corpora

_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Account:
    """What a run has drawn of one source in samples of one length, recomputed."""

    name: str
    """The source's; `NAME.length_L` where a stage has given its samples another length than `data.seq_length`."""
    samples: int
    tokens: int
    documents: int
    epochs: float
    samples_skipped: int
    """Of these samples, those in batches that were drawn and not trained on."""
    tokens_skipped: int
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
    skipped_batches: list[int]
    """Numbers of the global batches that were drawn and not trained on."""
    accounts: list[Account]
    compared_with: list[str]
    """Checkpoints whose ledger was found equal."""
    sources: Mapping[str, TokenSource]
    skipped_samples: Mapping[str, set[int]]
    """Numbers of the samples in those batches, by account."""
    lowest_replay_share: float | None
    """Of the tokens, in force after any step, of all sources of role `replay` together; None where there are none."""
    corpora: Mapping[str, tuple[str, ...]]
    """Fingerprints of the curated corpora that a source's files were made of, by source; those without are absent."""

    def seen(self, name: str) -> Iterator[SeenRange]:
        """Every range of every document that was trained on of a source: epoch by epoch, by document."""
        source, skipped = self.sources[name], self.skipped_samples[name]
        samples = next(account.samples for account in self.accounts if account.name == name)
        for epoch in range(-(-samples // source.samples_per_epoch)):
            first = epoch * source.samples_per_epoch
            last = min(samples, first + source.samples_per_epoch)
            yield from _ranges(source, epoch, (n for n in range(first, last) if n not in skipped))


def audit(run: Path) -> Audit:
    """Recompute the ledger of `run`. Raises DataError when log, files and checkpoints disagree."""
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run} holds no config.yaml, is no run; give a run directory of cptron train")
    sources = _drawn_sources(run)
    replay, counted = Replay(sources), _Counted(sources)
    last, compared = BEGINNING, list[str]()
    skipped_batches, skipped_samples = list[int](), {name: set[int]() for name in sources}
    saved, replayed = _saved_ledgers(run), _Replayed(run)
    for step in read_log(run / DATA_LOG):
        replay.follow(step)
        replayed.follow(step)
        if step.batch in saved:
            path, ledger = saved[step.batch]
            _compare(counted, step, path, ledger)
            compared.append(str(path))
        if step.skipped:
            skipped_batches.append(step.batch)
            for name, cursor in step.cursors.items():
                skipped_samples[name].update(range(last.cursors.get(name, 0), cursor))
        last = step
    beyond = [path for number, (path, _) in saved.items() if number > last.batch]
    if beyond:
        raise DataError(
            f"{run / DATA_LOG} ends with step {last.step}, before {beyond[0]}; "
            "restore the log, or remove the checkpoint"
        )
    accounts = [
        counted.account(name, last.cursors[name], skipped_samples[name], replay.deviations[name])
        for name in sources
    ]
    return Audit(
        last.step,
        skipped_batches,
        accounts,
        compared,
        sources,
        skipped_samples,
        replayed.lowest_share,
        _corpora(run, {source_of(account) for account in sources}),
    )


def _corpora(run: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Of the sources `names` that were drawn."""
    configured = _configured(run)
    paths = {name: configured[name].data.sources[0].path for name in sorted(names)}
    found = {name: tuple(corpus.fingerprint for corpus in read_corpora(path)) for name, path in paths.items()}
    return {name: fingerprints for name, fingerprints in found.items() if fingerprints}


def _drawn_sources(run: Path) -> dict[str, TokenSource]:
    """The sources that the log names, in the order of the run's configuration and then of earlier ones; those of
    an attempt that took no step are not opened."""
    configured = _configured(run)
    last = deque(read_log(run / DATA_LOG), maxlen=1)  # a source never leaves the log again
    drawn = last[0].cursors if last else {}
    unknown = {
        account for account in drawn if source_of(account) not in configured or not _is_account(account)
    }
    if unknown:
        raise DataError(
            f"{run} has drawn from {sorted(unknown)}, its config.yaml names no such source; restore it"
        )
    found: dict[str, TokenSource] = {}
    for name, config in configured.items():
        for account in (account for account in drawn if source_of(account) == name):
            (source,) = open_sources(config)
            length = length_of(account)
            found[account] = source.at_length(length) if length else source
    return found


def _is_account(name: str) -> bool:
    """Whether the ledger of a run can have it."""
    source, length = source_of(name), name.rpartition("_")[2]
    return name == source or (length.isdecimal() and name == account_of(source, int(length)))


def _configured(run: Path) -> dict[str, Config]:
    """Source name -> the newest configuration of the run that names it, with this source alone."""
    configured: dict[str, Config] = {}
    for path in stored_configs(run):
        config = load_config(path).config
        if config.data.order == "megatron":
            raise DataError(
                f"{run} has data.order=megatron, only cptron's own order can be recomputed; nothing to do"
            )
        for item in config.data.sources:
            only_this = replace(config, data=replace(config.data, sources=(item,)))
            configured.setdefault(item.name, only_this)
    return configured


class _Replayed:
    """Follows the share of the sources that the run's configuration gives the role `replay`."""

    def __init__(self, run: Path) -> None:
        sources = load_config(run / "config.yaml").config.data.sources
        self._names = {source.name for source in sources if source.role == "replay"}
        self.lowest_share: float | None = None

    def follow(self, step: LoggedStep) -> None:
        """Take the shares of a step into account."""
        if self._names:
            share = math.fsum(
                share for account, share in step.shares.items() if source_of(account) in self._names
            )
            self.lowest_share = min(share, 1.0 if self.lowest_share is None else self.lowest_share)


class _Counted:
    """Documents begun and tokens predicted by the first samples of each source, however many; each is read
    once, because a cursor only grows."""

    def __init__(self, sources: Mapping[str, TokenSource]) -> None:
        self._sources = sources
        self._sums = {name: (0, 0, 0) for name in sources}

    def entry(self, step: LoggedStep, name: str) -> Entry:
        """What a ledger must hold of a source after a step."""
        source, cursor = self._sources[name], step.cursors[name]
        documents, tokens = self._upto(name, cursor)
        since_mix, epochs = cursor - step.mix_start[name], cursor / source.samples_per_epoch
        return Entry(source.identity, step.shares[name], cursor, since_mix, tokens, documents, epochs)

    def account(self, name: str, samples: int, skipped: set[int], deviation: float) -> Account:
        """What people are told of a source."""
        documents, tokens = self._upto(name, samples)
        source = self._sources[name]
        _, tokens_skipped = source.count(np.array(sorted(skipped), np.int64)) if skipped else (0, 0)
        epochs = samples / source.samples_per_epoch
        return Account(name, samples, tokens, documents, epochs, len(skipped), tokens_skipped, deviation)

    def _upto(self, name: str, samples: int) -> tuple[int, int]:
        counted, documents, tokens = self._sums[name]
        for first in range(counted, samples, _AT_ONCE):
            found = self._sources[name].count(np.arange(first, min(samples, first + _AT_ONCE)))
            documents, tokens = documents + found[0], tokens + found[1]
        self._sums[name] = samples, documents, tokens
        return documents, tokens


def _saved_ledgers(run: Path) -> dict[int, tuple[Path, Ledger]]:
    """Batches drawn -> state file and ledger of the run's checkpoints that can be read."""
    found = {}
    for path in sorted((run / "checkpoints").glob("step_*/state.json")):
        try:
            state = parse_json(path.read_text())
            found[int(state["batches_drawn"])] = path, Ledger.from_dict(state["ledger"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); remove the damaged checkpoint") from None
        except CheckpointError as error:
            raise DataError(f"{path}: {error}") from None
    return found


def _compare(counted: _Counted, step: LoggedStep, path: Path, ledger: Ledger) -> None:
    for name in sorted(ledger.entries.keys() | step.cursors.keys()):
        expected = counted.entry(step, name) if name in step.cursors else None
        found = ledger.entries.get(name)
        if found != expected:
            raise DataError(
                f"{path} has source {name} at {found}, log and files give {expected}; do not go on from this checkpoint"
            )


def _ranges(source: TokenSource, epoch: int, cursors: Iterable[int]) -> Iterator[SeenRange]:
    pieces: dict[int, list[tuple[int, int]]] = {}
    for cursor in cursors:
        for span in source.spans(cursor):
            pieces.setdefault(span.document, []).append((span.offset, span.offset + span.length))
    for document in sorted(pieces):
        start, stop = None, 0
        for first, end in sorted(pieces[document]):
            if start is None or first > stop:
                if start is not None:
                    yield SeenRange(source.account, epoch, document, start, stop)
                start, stop = first, end
            stop = max(stop, end)
        if start is not None:
            yield SeenRange(source.account, epoch, document, start, stop)
