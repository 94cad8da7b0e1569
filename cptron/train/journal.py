"""What the guards have done to a run: `RUN/journal.jsonl`, one line an action.

Place in the flow: `guards` appends before an action takes effect, and reads it when a run goes on. Invariant: a line
that was written whole is on disk, and decides over its batches whenever they are drawn again, under any layout.

A batch is known by its number: the global batches drawn since the start of the run, counted from 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from cptron.durable import append_line, whole_lines
from cptron.errors import CheckpointError
from cptron.json_text import parse_json

JOURNAL = "journal.jsonl"
CHOICES = {"action": ("log", "skip", "rollback"), "cause": ("spike", "nonfinite")}


@dataclass(frozen=True, slots=True)
class Entry:
    """One action."""

    batch: int
    """The batch that it is about."""
    step: int
    """The step that this batch was tried for, counted from 1."""
    action: Literal["log", "skip", "rollback"]
    cause: Literal["spike", "nonfinite"]
    loss_nats_per_token: float
    grad_norm: float
    z_loss: float
    z_grad_norm: float
    first: int
    """First batch of those dropped; the last is `batch`. Nothing is dropped by `log`."""
    data: str
    """Fingerprint of the settings that decide which samples a batch holds."""
    to_step: int = 0
    """Step of the checkpoint that a rollback went to."""
    found: str = ""
    """What the diagnosis of a batch that was not finite has named."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(choices)}")
        for name in ("batch", "step", "first", "to_step"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**62:
                raise ValueError(f"{name} is {value!r}, must be a whole number from 0")
        for name in ("loss_nats_per_token", "grad_norm", "z_loss", "z_grad_norm"):
            if type(getattr(self, name)) is not float:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be a number")
        if not 1 <= self.first <= self.batch:
            raise ValueError(f"first is {self.first}, must be from 1 to the batch {self.batch}")
        if not isinstance(self.data, str) or not isinstance(self.found, str):
            raise ValueError("data and found must be texts")

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Raises ValueError or TypeError on what `to_line` cannot have written."""
        values = parse_json(line)
        if not isinstance(values, Mapping):
            raise ValueError("must be an object")
        numbers = {field.name for field in fields(cls) if field.type == "float"}
        read: dict[str, Any] = {
            key: _number(value) if key in numbers else value for key, value in values.items()
        }
        return cls(**read)

    def to_line(self) -> bytes:
        """One line of JSON; a number that JSON lacks is a text."""
        values = {
            key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        return (json.dumps(values, allow_nan=False) + "\n").encode()

    @property
    def drops(self) -> bool:
        """Its batches are not trained on."""
        return self.action != "log"

    def to_record(self) -> dict[str, Any]:
        """For metrics and console."""
        return asdict(self)


class Journal:
    """All entries, of which those hold that are about the run's present data settings; the same on every rank."""

    def __init__(self, entries: Sequence[Entry], data: str) -> None:
        self._all = list(entries)
        self._data = data

    def __len__(self) -> int:
        return len(self._all)

    @property
    def not_repeated(self) -> int:
        """Entries about other data: since then a batch of the same number holds other samples."""
        return len(self._all) - len(self._entries)

    @property
    def _entries(self) -> list[Entry]:
        return [entry for entry in self._all if entry.data == self._data]

    def add(self, entry: Entry) -> None:
        """What has just been appended to the file."""
        self._all.append(entry)

    def require_follows(self, batches_drawn: int, known: int) -> None:
        """Raise `CheckpointError` unless this is the journal of a run that has drawn so many batches, and whose state
        knows `known` entries: none is lost, and none was made afterwards about data that is in the weights."""
        if len(self._all) < known:
            raise CheckpointError(
                f"{JOURNAL} has {len(self._all)} action(s), the checkpoint was made with {known}; restore the file"
            )
        for entry in self._all[known:]:
            if entry.drops and entry.first <= batches_drawn:
                raise CheckpointError(
                    f"the checkpoint holds what was learned from batch {entry.first} to {batches_drawn}, which "
                    f"{JOURNAL} drops: it was left behind by a rollback; remove it, to go on from the one before"
                )

    def decides(self, batch: int) -> bool:
        """An action was taken at this batch or later: whatever the journal does not name was let pass."""
        return any(batch <= entry.batch for entry in self._entries)

    def dropping(self, batch: int) -> Entry | None:
        """The entry, if any, by which a batch is drawn and not trained on."""
        found = [entry for entry in self._entries if entry.drops and entry.first <= batch <= entry.batch]
        return min(found, key=lambda entry: entry.batch) if found else None

    def logged(self, batch: int) -> Entry | None:
        """The entry, if any, that was only said of a batch."""
        return next((entry for entry in self._entries if not entry.drops and entry.batch == batch), None)

    def actions_since(self, batch: int) -> int:
        """Skips and rollbacks at `batch` or later."""
        return sum(entry.drops and entry.batch >= batch for entry in self._entries)


def read_journal(path: Path) -> list[Entry]:
    """All entries, oldest first; none where there is no file. A last line that was cut off has had no effect and is
    left out. Raises `CheckpointError` on any other line that is no entry."""
    entries = []
    for number, line in enumerate(lines_of(path), start=1):
        try:
            entries.append(Entry.from_line(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path}:{number} is no entry of a journal ({error}); restore the file: without it the run would go "
                "on with other data"
            ) from None
    return entries


def lines_of(path: Path) -> list[bytes]:
    """Lines of a journal that were written whole; none where there is no file. Raises `CheckpointError`."""
    try:
        return whole_lines(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it") from None


def append_entry(path: Path, entry: Entry) -> None:
    """Write one more entry and force it to disk. Raises `CheckpointError`, with the file as it was to every reader."""
    add_line(path, entry.to_line())


def add_line(path: Path, line: bytes) -> None:
    """Write one more line and force it to disk; a line that was cut off before is replaced. Raises
    `CheckpointError`, with the file as it was to every reader."""
    try:
        append_line(path, line)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}); free space and start again") from None


def _number(value: Any) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} must be a number")
    return value
