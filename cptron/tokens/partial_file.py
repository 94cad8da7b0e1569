"""A file that is not published yet: appended to, hashed as it grows, and taken up again after a stop.

Place in the flow: `indexed_writer` and `rejects` write through it; `journal` records its size.
Invariant: the hash is always that of all bytes of the file, those from before a resume included.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from cptron.durable import partial_path
from cptron.errors import DataError
from cptron.tokens.manifest import FileRecord

_READ_BYTES = 1 << 22


class PartialFile:
    """`FINAL.partial`, opened anew or cut back to the size that a journal recorded."""

    def __init__(self, final: Path, num_bytes: int | None = None) -> None:
        """Begin an empty file, or go on after `num_bytes` of it. Raises DataError when they are not there."""
        self.path = partial_path(final)
        if num_bytes is not None:
            self._require(num_bytes)
        self._file = self.path.open("w+b" if num_bytes is None else "r+b", buffering=0)
        self._sha256 = hashlib.sha256()
        self.num_bytes = num_bytes or 0
        if num_bytes is not None:
            self._take_up(num_bytes)

    def _require(self, num_bytes: int) -> None:
        actual = self.path.stat().st_size if self.path.is_file() else None
        if actual is None or actual < num_bytes:
            raise DataError(
                f"{self.path} has {actual} bytes, its journal requires {num_bytes}; begin again with --restart"
            )

    def _take_up(self, num_bytes: int) -> None:
        self._file.truncate(num_bytes)
        for piece in self.read_back():
            self._sha256.update(piece)
        self._file.seek(num_bytes)

    def write(self, content: bytes | memoryview) -> None:
        """Append all of `content`. An OSError names the file, which may then hold a part of it."""
        view = memoryview(content).cast("B")
        self._sha256.update(view)
        try:
            while len(view):
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.num_bytes += memoryview(content).nbytes

    def read_back(self, num_bytes: int = _READ_BYTES) -> Iterator[bytes]:
        """What was written, from the beginning, in pieces of `num_bytes`."""
        with self.path.open("rb") as stream:
            while piece := stream.read(num_bytes):
                yield piece

    def sync(self) -> None:
        """Force what was written to disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:  # a full disk may be reported only here
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Leave the file as it is."""
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it has been published."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def record(self) -> FileRecord:
        """Size and hash of all that was written."""
        return FileRecord(bytes=self.num_bytes, sha256=self._sha256.hexdigest())
