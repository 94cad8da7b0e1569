"""The stream of samples of a run: which sample of which source comes next, and when a source has been seen
often enough.

Place in the flow: sources + blend + ledger -> here -> `loader`. Invariant: what is drawn next is a pure
function of the ledger and the configuration; so a restart, another batch size or another number of ranks
changes nothing of it, and new shares change only what is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.blend import Blend
from cptron.data.floors import floored
from cptron.data.ledger import RETIRED, Entry, Ledger, source_of
from cptron.data.mix import Mix, OnMaxEpochs
from cptron.data.source import TokenSource
from cptron.data.stages import Stage, stage_at, token_bounds

__all__ = ["Draw", "Mix", "OnMaxEpochs", "Readable", "SampleStream", "Stream"]


class Draw(NamedTuple):
    """One sample: index of its source, and its number in it."""

    source: int
    cursor: int


class Readable(Protocol):
    """What the loader needs of a source."""

    name: str
    seq_length: int

    def read(self, cursors: npt.NDArray[np.int64], batch: MicroBatch) -> None:
        """Write the samples `cursors` [B] to the arrays of `batch`."""

    def documents(self, cursor: int) -> npt.NDArray[np.int32]:
        """What `read` writes to `documents_BS` for one sample, from the index alone."""


class Stream(Protocol):
    """What the loader needs of a stream; its ledger is its own, ahead of the run's."""

    ledger: Ledger
    notes: list[str]
    stage: Stage
    """The one that the last samples drawn belong to; before any, the next ones."""
    stage_number: int
    """From 1; 0 where the run has no stages."""

    @property
    def sources(self) -> Sequence[Readable]:
        """What `Draw.source` counts in, for the samples drawn last."""

    def batch_size(self, default: int) -> int:
        """Samples of the next global batch; `default` where the stage does not say."""

    def stage_after(self, ledger: Ledger) -> Stage:
        """The one of the global batch that follows on what `ledger` counts."""

    def draw(self, num_samples: int) -> list[Draw]:
        """The next samples, of one stage, entered in the ledger; an empty list when there are not so many."""


class SampleStream:
    """Draws samples and keeps the account of them."""

    def __init__(self, sources: Sequence[TokenSource], mix: Mix, ledger: Ledger) -> None:
        """Continue where `ledger` stands, on a copy of it. Raises DataError when a source's content has
        changed, ConfigError on stages that would end before they begin."""
        self.ledger = Ledger()
        self.ledger.assign(ledger)
        self.notes: list[str] = []
        """What people should know; whoever shows it empties it."""
        self._given, self._mix = sources, mix
        self._by_stage = _sources_by_stage(sources, mix.blends)
        self._until = token_bounds(mix.blends, mix.tokens_per_batch(self._by_stage))
        for source in sources:
            self.ledger.open(source.name, source.identity)
        for source in (source for used in self._by_stage for source in used):
            if source.account in self.ledger.entries:
                self.ledger.open(source.account, source.identity)
        self._enter_stage(self._next_stage())

    def again(self, factors: Sequence[float], replay_factor: float, ledger: Ledger) -> SampleStream:
        """A stream of the same sources that continues where `ledger` stands, under other factors."""
        mix = replace(self._mix, factors=tuple(factors), replay_factor=replay_factor)
        return SampleStream(self._given, mix, ledger)

    def batch_size(self, default: int) -> int:
        """Samples of the next global batch; `default` where its stage does not say."""
        return self._mix.blends[self._next_stage()].global_batch_size or default

    def stage_after(self, ledger: Ledger) -> Stage:
        """The one of the global batch that follows on what `ledger` counts."""
        return self._mix.blends[stage_at(self._until, ledger.total_tokens)]

    def draw(self, num_samples: int) -> list[Draw]:
        """The next samples, entered in the ledger; an empty list, and nothing entered, when the limits do not
        leave so many. The stage is that of the ledger now: it does not change within a global batch."""
        before, number, notes = Ledger(), self._number, len(self.notes)
        before.assign(self.ledger)
        if self._next_stage() != number:
            self._enter_stage(self._next_stage())
            self.notes.append(f"stage {self.stage_number} begins at {self.ledger.total_tokens:,} tokens")
        drawn: list[Draw] = []
        while len(drawn) < num_samples:
            part = self._draw_from_mix(num_samples - len(drawn)) if self._active else []
            if not part:
                why = self._why_no_more()
                self.ledger.assign(before)
                self._enter_stage(number)
                self.notes[notes:] = [why]
                return []
            drawn += part
        return drawn

    def _next_stage(self) -> int:
        return stage_at(self._until, self.ledger.total_tokens)

    def _enter_stage(self, number: int) -> None:
        """Open the accounts of a stage and put its blend in force."""
        self._number = number
        self.stage = self._mix.blends[number]
        self.stage_number = number + 1 if self._mix.stages else 0
        self.sources = self._by_stage[number]
        self._entries = [
            self.ledger.open(source.account, source.identity) if share else Entry(source.identity, 0.0)
            for source, share in zip(self.sources, self.stage.token_shares, strict=True)
        ]
        epochs = dict.fromkeys((source.name for source in self.sources), 0.0)
        current = {source.account for source in self.sources}
        for account, entry in self.ledger.entries.items():
            if account not in current and RETIRED not in account and source_of(account) in epochs:
                epochs[source_of(account)] += entry.epochs
        self._limits = [
            # to the millionth of a sample: 0.7 epochs of another length must not leave a sample more
            math.ceil(round((limit - epochs[source.name]) * source.samples_per_epoch, 6))
            if limit
            else math.inf
            for source, limit in zip(self.sources, self._mix.max_epochs, strict=True)
        ]
        self._remix()

    def _draw_from_mix(self, num_samples: int) -> list[Draw]:
        """Samples under the shares in force: all of them, or fewer where a source reaches its limit and the
        shares are set anew, or none where the run is to stop."""
        entries = [self._entries[i] for i in self._active]
        counts = [entry.since_mix for entry in entries]
        chosen, numbers = self._blend.draw(counts, num_samples)
        reached = self._reaches_limit(chosen)
        if self._mix.on_max_epochs == "stop" and reached < num_samples:
            return []
        redistribute = self._mix.on_max_epochs == "redistribute" and reached <= num_samples
        if redistribute:
            chosen, numbers = chosen[:reached], numbers[:reached]
        before_mix = np.array([entry.cursor - entry.since_mix for entry in entries])
        cursors = (numbers + before_mix[chosen]).tolist()
        drawn = [Draw(self._active[at], cursor) for at, cursor in zip(chosen.tolist(), cursors, strict=True)]
        for index, count in zip(
            self._active, np.bincount(chosen, minlength=len(entries)).tolist(), strict=True
        ):
            self._enter(index, count)
        if redistribute:
            self._remix()
        return drawn

    def _reaches_limit(self, chosen: npt.NDArray[np.int32]) -> int:
        """How many of `chosen` can be taken until some source has reached its limit and is chosen no more: one
        more than their number when no source reaches its limit."""
        stop = self._mix.on_max_epochs == "stop"
        first = len(chosen) + 1
        for at, index in enumerate(self._active):
            if self._limits[index] < math.inf and self._mix.on_max_epochs != "warn":
                left = int(self._limits[index]) - self._entries[index].cursor
                places = np.flatnonzero(chosen == at)
                # to stop, the sample beyond the limit counts; to hand the share on, the one that reaches it
                last = max(0, left if stop else left - 1)
                if len(places) > last:
                    first = min(first, int(places[last]) + (not stop))
        return first

    def _enter(self, index: int, num_samples: int) -> None:
        source, entry, limit = self.sources[index], self._entries[index], self._limits[index]
        cursors = np.arange(entry.cursor, entry.cursor + num_samples)
        documents, predictions = source.count(cursors)
        if entry.cursor <= limit < entry.cursor + num_samples:
            self.notes.append(f"source {source.name} begins to repeat beyond {self._limit_text(index)}")
        entry.advance(num_samples, predictions, documents, source.samples_per_epoch)

    def _remix(self) -> None:
        """Put the shares in force that the cursors leave: a source at its limit has none if others take over."""
        # by name: the order in the configuration must not decide which source a rounded weight favours
        drawn = sorted(
            (index for index, share in enumerate(self.stage.token_shares) if share),
            key=lambda index: self.sources[index].name,
        )
        left = [index for index in drawn if not self._hands_on(index)]
        for index in drawn:
            if self._entries[index].share and index not in left:
                name = self.sources[index].name
                self.notes.append(
                    f"source {name} has reached {self._limit_text(index)}; the others take its share"
                )
        floors = self._mix.floors
        self._starved = floors.replay_floor > 0 and not any(
            self.sources[index].name in floors.replay for index in left
        )
        asked = self._mix.asked(self.stage, left)
        by_name = {self.sources[index].name: share for index, share in zip(left, asked, strict=True)}
        shares = floored(by_name, floors) if left and not self._starved else {}
        self._active = [index for index in left if shares.get(self.sources[index].name)]
        self.ledger.set_shares({self.sources[i].account: shares[self.sources[i].name] for i in self._active})
        if self._active:
            # from the ledger's shares: the same ones in other words (9:1 and 0.9:0.1) give the same weights
            self._blend = Blend(
                [self._entries[i].share / self.sources[i].predictions_per_sample for i in self._active]
            )

    def _hands_on(self, index: int) -> bool:
        """Whether a source is at its limit and others take its share."""
        return (
            self._mix.on_max_epochs == "redistribute" and self._entries[index].cursor >= self._limits[index]
        )

    def _why_no_more(self) -> str:
        if self._starved:
            floor = self._mix.floors.replay_floor
            return f"every source of role replay has reached its max_epochs, and data.replay_floor={floor:g}"
        limits = [
            f"{source.name} ({self._limit_text(index)})"
            for index, source in enumerate(self.sources)
            if self._limits[index] < math.inf
        ]
        return f"the limits leave no further global batch: {', '.join(limits)}"

    def _limit_text(self, index: int) -> str:
        return f"max_epochs={self._mix.max_epochs[index]:g}"


def _sources_by_stage(sources: Sequence[TokenSource], stages: Sequence[Stage]) -> list[list[TokenSource]]:
    """Every source in the samples of each stage; those of one length are one object."""
    made: dict[tuple[int, int], TokenSource] = {}

    def used(index: int, stage: Stage) -> TokenSource:
        length = stage.seq_length or sources[index].seq_length
        if (index, length) not in made:
            made[index, length] = sources[index].at_length(length)
        return made[index, length]

    return [[used(index, stage) for index in range(len(sources))] for stage in stages]
