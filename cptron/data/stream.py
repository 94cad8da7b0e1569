"""The stream of samples of a run: which sample of which source comes next, and when a source has been seen
often enough.

Place in the flow: sources + blend + ledger -> here -> `loader`. Invariant: what is drawn next is a pure
function of the ledger and the configuration; so a restart, another batch size or another number of ranks
changes nothing of it, and new shares change only what is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.blend import Blend
from cptron.data.ledger import Ledger
from cptron.data.source import TokenSource

OnMaxEpochs = Literal["warn", "stop", "redistribute"]


class Draw(NamedTuple):
    """One sample: index of its source, and its number in it."""

    source: int
    cursor: int


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked of the sources."""

    token_shares: tuple[float, ...]
    """Share of the tokens of each source; any positive numbers."""
    max_epochs: tuple[float, ...]
    """Passes over each source after which `on_max_epochs` acts; 0 for no limit."""
    on_max_epochs: OnMaxEpochs


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

    @property
    def sources(self) -> Sequence[Readable]:
        """What `Draw.source` counts in."""

    def draw(self, num_samples: int) -> list[Draw]:
        """The next samples, entered in the ledger; an empty list when there are not so many."""


class SampleStream:
    """Draws samples and keeps the account of them."""

    def __init__(self, sources: Sequence[TokenSource], mix: Mix, ledger: Ledger) -> None:
        """Continue where `ledger` stands, on a copy of it. Raises DataError when a source's content has
        changed."""
        self.sources = list(sources)
        self.ledger = Ledger()
        self.ledger.assign(ledger)
        self.notes: list[str] = []
        """What people should know; whoever shows it empties it."""
        self._mix = mix
        self._entries = [self.ledger.open(source.name, source.identity) for source in sources]
        self._limits = [
            math.ceil(limit * source.samples_per_epoch) if limit else 0
            for source, limit in zip(sources, mix.max_epochs, strict=True)
        ]
        self._remix()

    def draw(self, num_samples: int) -> list[Draw]:
        """The next samples, entered in the ledger; an empty list, and nothing entered, when the limits do not
        leave so many."""
        before, notes = Ledger(), len(self.notes)
        before.assign(self.ledger)
        drawn: list[Draw] = []
        while len(drawn) < num_samples:
            part = self._draw_from_mix(num_samples - len(drawn)) if self._active else []
            if not part:
                self._restore(before)
                self.notes[notes:] = [self._why_no_more()]
                return []
            drawn += part
        return drawn

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
            if self._limits[index] and self._mix.on_max_epochs != "warn":
                left = self._limits[index] - self._entries[index].cursor
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
        if entry.cursor <= limit < entry.cursor + num_samples and limit:
            self.notes.append(f"source {source.name} begins to repeat beyond {self._limit_text(index)}")
        entry.advance(num_samples, predictions, documents, source.samples_per_epoch)

    def _remix(self) -> None:
        """Put the shares in force that the cursors leave: a source at its limit has none if others take over."""
        redistribute = self._mix.on_max_epochs == "redistribute"
        # by name: the order in the configuration must not decide which source a rounded weight favours
        by_name = sorted(range(len(self.sources)), key=lambda index: self.sources[index].name)
        self._active = [
            index
            for index in by_name
            if not (
                redistribute and self._limits[index] and self._entries[index].cursor >= self._limits[index]
            )
        ]
        for index in set(range(len(self.sources))) - set(self._active):
            if self._entries[index].share:
                name = self.sources[index].name
                self.notes.append(
                    f"source {name} has reached {self._limit_text(index)}; the others take its share"
                )
        total = math.fsum(self._mix.token_shares[index] for index in self._active)
        shares = {self.sources[i].name: self._mix.token_shares[i] / total for i in self._active}
        self.ledger.set_shares(shares)
        if self._active:
            # from the ledger's shares: the same ones in other words (9:1 and 0.9:0.1) give the same weights
            self._blend = Blend(
                [self._entries[i].share / self.sources[i].predictions_per_sample for i in self._active]
            )

    def _restore(self, before: Ledger) -> None:
        self.ledger.assign(before)
        self._entries = [self.ledger.entries[source.name] for source in self.sources]
        self._remix()

    def _why_no_more(self) -> str:
        limits = [f"{s.name} ({self._limit_text(i)})" for i, s in enumerate(self.sources) if self._limits[i]]
        return f"the limits leave no further global batch: {', '.join(limits)}"

    def _limit_text(self, index: int) -> str:
        return f"max_epochs={self._mix.max_epochs[index]:g}"
