"""How far preprocessing has come: `PREFIX.preprocess.journal.json`, and the lock that keeps a prefix to one process.

Place in the flow: `preprocess` saves a checkpoint every few seconds and goes on from the last one when it is started
again. Invariant: a journal never tells of bytes that are not on disk, and only the command that made it resumes it.
Where a file system has no locks, a process at whose prefix another one has begun since saves and publishes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.partials import partials_of
from cptron.tokens.indexed_writer import WriterState
from cptron.tokens.records import Position

FORMAT_VERSION = 1
_RESTART = "begin again with --restart"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A moment between two blocks."""

    position: Position
    records_read: int
    empty: Sequence[int]
    """Records without tokens, of each output."""
    rejected: Mapping[str, int]
    """Damaged records by reason."""
    writers: Sequence[WriterState]
    quarantine_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What a journal holds."""

    identity: Mapping[str, Any]
    """Everything that decides the output, as JSON."""
    checkpoint: Checkpoint
    publishing: Sequence[Any]
    """Manifests, as JSON, once all is encoded and durable and files are being renamed; empty before."""


class Hold:
    """A prefix that this process began at last."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._name = path, secrets.token_hex(8).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, self._name, 0)

    @property
    def is_ours(self) -> bool:
        """Whether no other process has begun, or ended, there since."""
        try:
            return self._path.read_bytes() == self._name
        except FileNotFoundError:
            return False


class Journal:
    """The journal of one output prefix."""

    def __init__(self, output_prefix: str) -> None:
        self.path = Path(f"{output_prefix}.preprocess.journal.json")
        self.hold: Hold | None = None
        """Looked at before anything is saved or published."""

    @property
    def is_ours(self) -> bool:
        """Whether no other process has begun at the prefix since it was locked."""
        return self.hold is None or self.hold.is_ours

    def require_ours(self) -> None:
        """Raise DataError unless `is_ours`."""
        if not self.is_ours:
            raise DataError(
                f"{self.path} is that of another process, which has begun at this output since, must be of one; let "
                "that one end (this file system has no locks, or they do not reach from host to host)"
            )

    def save(self, entry: Entry) -> None:
        """Replace the journal in one step; what it tells of must be durable already. Raises DataError where another
        process has begun at the prefix."""
        self.require_ours()
        replace_text(self.path, json.dumps({"format_version": FORMAT_VERSION, **asdict(entry)}))

    def load(self) -> Entry | None:
        """The journal of a run that was cut off, if there is one. Raises DataError when it is damaged."""
        try:
            content = parse_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{self.path} must be JSON ({error}); {_RESTART}") from error
        try:
            if content["format_version"] != FORMAT_VERSION:
                raise TypeError(f"format_version {content['format_version']} must be {FORMAT_VERSION}")
            point = content["checkpoint"]
            checkpoint = Checkpoint(
                Position(**point["position"]),
                int(point["records_read"]),
                list(point["empty"]),
                dict(point["rejected"]),
                [WriterState(**state) for state in point["writers"]],
                int(point["quarantine_bytes"]),
            )
            return Entry(dict(content["identity"]), checkpoint, list(content["publishing"]))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise DataError(f"{self.path} is damaged ({error!r}); {_RESTART}") from error

    def remove(self) -> None:
        """The run is done, or given up."""
        self.path.unlink(missing_ok=True)
        for left in partials_of(self.path):
            left.unlink(missing_ok=True)

    def require_identity(self, entry: Entry, identity: Mapping[str, Any]) -> None:
        """Raise DataError when `entry` is of another command than the one with `identity`.

        How damaged records are treated may change as long as there has been none.
        """
        now = json.loads(json.dumps(identity))  # as a journal holds it: lists for tuples
        for field in {**now, **entry.identity}:
            if field == "on_error" and not entry.checkpoint.rejected:
                continue
            before, wanted = entry.identity.get(field), now.get(field)
            if before != wanted:
                before, wanted = _first_difference(before, wanted)
                raise DataError(
                    f"{self.path} is of an unfinished run with {field} {before}, this one has {wanted}; "
                    "run the former command to go on, or begin again with --restart"
                )


def _first_difference(before: Any, now: Any) -> tuple[Any, Any]:
    """Long lists are no help to people."""
    if isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            return f"of {len(before)} entries", f"{len(now)}"
        for old, new in zip(before, now, strict=True):
            if old != new:
                return old, new
    return before, now


@contextmanager
def locked(output_prefix: str) -> Iterator[Hold]:
    """Keep other processes off `output_prefix`; the lock ends with the process, however it ends.

    Raises DataError when another process holds it.
    """
    path = Path(f"{output_prefix}.preprocess.lock")
    descriptor = _lock(path)
    hold: Hold | None = None
    try:
        hold = Hold(path, descriptor)
        yield hold
    finally:
        if hold and hold.is_ours:
            path.unlink(missing_ok=True)  # while it is held: who opened it before will see that it is gone
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some parallel file systems are mounted without locks; then there is only the user's care.
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                return descriptor
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(
                    f"{path} is locked by another process that writes this output; wait for it, "
                    "or use another --output-prefix"
                ) from None
            raise
        try:
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
