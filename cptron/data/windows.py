"""What can be evaluated: windows of tokens, cut into micro-batches over the data parallel ranks.

Place in the flow: `valid` and the probes are such sets -> `evaluate.perplexity`. Invariant: every rank iterates over
the same number of micro-batches, as pipeline schedules need it; over all ranks each window comes once, and windows
beyond the last one hold nothing that counts.

Shapes: B windows of a micro-batch, W windows of the set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from cptron.data.batch import MicroBatch


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What tells whether two evaluations are of the same."""

    windows: str
    """Fingerprint of the tokens, of how they are cut, and of which count: where it is equal, windows are the same."""
    text: str = ""
    """Fingerprint of the text, whole: where it is equal, another tokenizer has made other tokens of the same; empty
    where that is not known, or not all of it is evaluated."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer; empty where it is not known."""
    unwritten_ids: tuple[int, ...] = ()
    """Ids that were put around documents and are no part of their text."""


class WindowSet(ABC):
    """One set, as one data parallel rank sees it."""

    name: str
    num_windows: int
    """Windows with at least one place."""
    num_predicted_tokens: int
    """Labels that count, over all ranks."""
    facts: SetFacts

    def __init__(self, micro_batch_size: int, dp_rank: int, dp_size: int) -> None:
        self._micro_batch_size = micro_batch_size
        self._dp_rank = dp_rank
        self._dp_size = dp_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of each rank."""
        return -(-self.num_windows // (self._micro_batch_size * self._dp_size))

    def windows_of(self, first: int, num_micro_batches: int) -> tuple[int, int]:
        """First window, and number of windows, of so many micro-batches from number `first` on over all ranks; windows
        that only fill up are counted."""
        of_each = self._micro_batch_size * self._dp_size
        return first * of_each, num_micro_batches * of_each

    def __iter__(self) -> Iterator[MicroBatch]:
        for number in range(self.num_micro_batches):
            first = (number * self._dp_size + self._dp_rank) * self._micro_batch_size
            yield self.micro_batch(range(first, first + self._micro_batch_size))

    @abstractmethod
    def micro_batch(self, windows: range) -> MicroBatch:
        """These windows; `source_B` is the number of each in the set."""
