"""The ledger: how far into each source the run is. This is the whole position of the data.

Place in the flow: advanced by `stream`, stored in every checkpoint. Invariant: an account's `cursor` only grows; so
across restarts, changed shares and longer runs no sample is repeated or skipped by accident.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from cptron.errors import CheckpointError, DataError

RETIRED = ".until_step_"
"""Stands in the name of an account that was closed, and in no source's."""
LENGTH = ".length_"
"""Stands in the name of an account of samples that a stage has given another length."""

_MOST = 2**62


def account_of(source: str, seq_length: int) -> str:
    """Name of the account of a source in samples of a length that is not `data.seq_length`."""
    return f"{source}{LENGTH}{seq_length}"


def source_of(account: str) -> str:
    """The source whose account it is; no source's name has a dot."""
    return account.partition(".")[0]


def length_of(account: str) -> int | None:
    """The length in its name; None for samples of `data.seq_length`. Raises ValueError on a name that is none."""
    length = account.partition(LENGTH)[2].partition(RETIRED)[0]
    return int(length) if length else None


@dataclass
class Entry:
    """One source's account."""

    identity: str
    """Content of both token files; other tokens, or other documents, are another source."""
    share: float
    """Share of the tokens now in force; 0 for a source that is no longer drawn."""
    cursor: int = 0
    """Samples drawn since the start of the run; also the number of the next one."""
    since_mix: int = 0
    """Samples drawn since the shares were last set."""
    tokens: int = 0
    """Tokens predicted by the samples drawn."""
    documents: int = 0
    """Documents that began in the samples drawn, each counted again in each epoch."""
    epochs: float = 0.0
    """Passes over the source."""

    def advance(self, num_samples: int, tokens: int, documents: int, samples_per_epoch: float) -> None:
        """Enter the next `num_samples` samples, which predict `tokens` tokens and begin `documents` documents."""
        self.cursor += num_samples
        self.since_mix += num_samples
        self.tokens += tokens
        self.documents += documents
        self.epochs = self.cursor / samples_per_epoch


@dataclass
class Ledger:
    """Accounts by source name; sources no longer in the mix stay on record."""

    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """The ledger of a checkpoint. Raises CheckpointError when it cannot be read."""
        try:
            entries = {name: Entry(**entry) for name, entry in saved["entries"].items()}
            for entry in entries.values():
                _check(entry)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's data ledger is damaged ({error!r}); use another checkpoint"
            ) from None
        return cls(entries)

    def open(self, name: str, identity: str) -> Entry:
        """The account of a source; a new one when it has none.

        Raises `DataError` when the source's content is no longer the one that the cursor counts in.
        """
        entry = self.entries.setdefault(name, Entry(identity, 0.0))
        if entry.identity != identity:
            raise DataError(
                f"source {name} has changed since the checkpoint (content {identity[:12]}, was "
                f"{entry.identity[:12]}); restore its files, or give the new data another name"
            )
        return entry

    def renew(self, name: str, step: int) -> None:
        """Let the account of a source start anew: the old one stays on record as `NAME.until_step_XXXXXXXX`."""
        if RETIRED not in name:
            self.entries[f"{name}{RETIRED}{step:08d}"] = replace(
                self.entries.pop(name), share=0.0, since_mix=0
            )

    def set_shares(self, shares: Mapping[str, float]) -> None:
        """Put shares in force; sources that are not named get 0. Cursors stay; the blend counts anew, unless
        nothing changed."""
        if all(entry.share == shares.get(name, 0.0) for name, entry in self.entries.items()):
            return
        for name, entry in self.entries.items():
            entry.share = shares.get(name, 0.0)
            entry.since_mix = 0

    def assign(self, other: Ledger) -> None:
        """Take over the accounts of `other`, which goes its own way afterwards."""
        self.entries = {name: copy.copy(entry) for name, entry in other.entries.items()}

    @property
    def total_tokens(self) -> int:
        """Predicted tokens drawn since the start of the run, also by accounts that were closed."""
        return sum(entry.tokens for entry in self.entries.values())

    def accounts(self, source: str) -> list[Entry]:
        """A source's accounts that are not closed: one for each length of its samples."""
        return [
            entry for name, entry in self.entries.items() if source_of(name) == source and RETIRED not in name
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` inverts it."""
        return asdict(self)


def _check(entry: Entry) -> None:
    """Raise TypeError unless the numbers of `entry` are such that a run can have counted them."""
    numbers = (entry.cursor, entry.since_mix, entry.tokens, entry.documents)
    if not all(type(number) is int and 0 <= number < _MOST for number in numbers):
        raise TypeError(f"{entry} must count in integers from 0 to 2^62")
    if entry.since_mix > entry.cursor:
        raise TypeError(f"{entry} must not have a since_mix beyond its cursor")
    if not isinstance(entry.identity, str) or not _is_number(entry.share) or not 0 <= entry.share <= 1:
        raise TypeError(f"{entry} must have an identity and a share from 0 to 1")
    if not _is_number(entry.epochs) or not 0 <= entry.epochs < math.inf:
        raise TypeError(f"{entry} must have a finite number of epochs from 0")


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
