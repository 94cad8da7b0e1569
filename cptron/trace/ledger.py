"""Blocks of memory over time: which were alive at the fullest moment, and what each was for.

Place in the flow: the tracker writes it while a step is traced; a dry run reads its peak. Imports no torch. Invariant:
the categories of a moment add up to all that is allocated at it, each block counted once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ACTIVATIONS, WORKING = "activations", "working"
CATEGORIES = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, WORKING)


@dataclass(slots=True)
class Block:
    """One allocation."""

    size: int
    """Bytes."""
    born: int
    """Number of the event that made it."""
    died: int | None = None
    """Number of the event that freed it; None while it is there."""
    window: int | None = None
    """The forward pass in which it was made."""
    category: str = ""
    """What it is for, where that is known; else it follows from its life."""

    def is_alive(self, moment: int) -> bool:
        """It is allocated right after the event `moment`."""
        return self.born <= moment and (self.died is None or moment < self.died)


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes by category at one moment."""

    phase: str
    """What was going on."""
    by_category: dict[str, int]

    @property
    def allocated(self) -> int:
        """All of it."""
        return sum(self.by_category.values())


@dataclass(slots=True)
class Ledger:
    """Allocations in the order of their events."""

    unit: int = 1
    """Sizes are rounded up to multiples of so many bytes."""
    blocks: list[Block] = field(default_factory=list)
    _open: dict[Hashable, Block] = field(default_factory=dict)
    _moments: int = 0
    _ends: list[int | None] = field(default_factory=list)
    _closed: bool = False
    _phases: list[tuple[int, str]] = field(default_factory=list)

    def made(self, key: Hashable, size: int) -> None:
        """A block is there from now on; `key` names it as long as it lives."""
        window = len(self._ends) - 1 if self._ends and self._ends[-1] is None else None
        block = Block(-(-size // self.unit) * self.unit, self._tick(), window=window)
        self._open[key] = block
        self.blocks.append(block)

    def freed(self, key: Hashable) -> None:
        """The block of that name is gone."""
        block = self._open.pop(key)
        if not self._closed:
            block.died = self._tick()

    def close(self) -> None:
        """What is there now stays for ever: nothing after this counts."""
        self._closed = True

    def is_for(self, keys: Iterable[Hashable], category: str) -> None:
        """Say what blocks that are there are for; of those that have a category already nothing changes."""
        for key in keys:
            block = self._open.get(key)
            if block is not None and not block.category:
                block.category = category

    def begin_forward(self) -> None:
        """A forward pass of one micro-batch begins."""
        self._ends.append(None)

    def end_forward(self) -> None:
        """It is over; what it made and is still there waits for the backward pass."""
        self._ends[-1] = self._moments

    def begin(self, phase: str) -> None:
        """From now on `phase` is going on."""
        self._phases.append((self._moments, phase))

    def _tick(self) -> int:
        self._moments += 1
        return self._moments

    def peak(self) -> Moment:
        """The fullest moment; the first of equals."""
        changes = [0] * (self._moments + 1)
        for block in self.blocks:
            changes[block.born] += block.size
            if block.died is not None:
                changes[block.died] -= block.size
        total = most = when = 0
        for moment, change in enumerate(changes):
            total += change
            if total > most:
                most, when = total, moment
        return self.at(when)

    def now(self) -> Moment:
        """What is there."""
        return self.at(self._moments)

    def at(self, moment: int) -> Moment:
        """Bytes by category after the event `moment`."""
        found = dict.fromkeys(CATEGORIES, 0)
        for block in self.blocks:
            if block.is_alive(moment):
                found[self._category(block)] += block.size
        phases = [phase for start, phase in self._phases if start < moment]
        return Moment(phases[-1] if phases else "", found)

    def _category(self, block: Block) -> str:
        """Of those without one: made by a forward pass and freed after it is an activation; what stays to the end is a
        buffer of the engine's, and counts as working memory like all that is short-lived."""
        if block.category:
            return block.category
        if block.window is None or block.died is None:
            return WORKING
        end = self._ends[block.window]
        return ACTIVATIONS if end is not None and block.died > end else WORKING
