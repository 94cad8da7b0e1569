"""Hashes the input files while they are read, on a thread of its own.

Place in the flow: `preprocess` reports how far reading has come, and asks for the records at the end.
Invariant: a file that changed between the start and the end of the run is refused.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from cptron.errors import DataError
from cptron.tokens.manifest import SourceRecord

_PIECE_BYTES = 1 << 20


class SourceHasher:
    """Stays behind the reader, so that a byte comes from disk once and from memory the second time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stats = [file_identity(path) for path in paths]
        self._allowed = (0, 0)
        self._changed = threading.Condition()
        self._stopped = False
        self._done: Future[tuple[SourceRecord, ...]] = Future()
        self._thread = threading.Thread(target=self._run, name="source-hash", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self.allow(len(self._paths), 0)
        self._thread.join()

    def allow(self, file: int, num_bytes: int) -> None:
        """The reader has come to byte `num_bytes`, as stored, of input number `file`."""
        with self._changed:
            self._allowed = max(self._allowed, (file, num_bytes))
            self._changed.notify()

    def result(self) -> tuple[SourceRecord, ...]:
        """A record of each file, in order. Raises DataError when one has changed, OSError when unreadable."""
        self.allow(len(self._paths), 0)
        records = self._done.result()
        for path, before in zip(self._paths, self._stats, strict=True):
            if file_identity(path) != before:
                raise DataError(
                    f"input {path} has changed since the start, must not; run again with --restart"
                )
        return records

    def _run(self) -> None:
        try:
            self._done.set_result(tuple(self._hash(*item) for item in enumerate(self._paths)))
        except BaseException as error:
            self._done.set_exception(error)

    def _hash(self, file: int, path: Path) -> SourceRecord:
        sha256 = hashlib.sha256()
        num_bytes = 0
        with path.open("rb", buffering=0) as stream:
            while not self._stopped:
                self._wait_for(file, num_bytes)
                piece = stream.read(_PIECE_BYTES)
                if not piece:
                    break
                sha256.update(piece)
                num_bytes += len(piece)
        return SourceRecord(path=str(path), bytes=num_bytes, sha256=sha256.hexdigest())

    def _wait_for(self, file: int, num_bytes: int) -> None:
        with self._changed:
            while self._allowed < (file, num_bytes):
                self._changed.wait()


def file_identity(path: Path) -> tuple[int, int]:
    """Size and time of the last change, in ns."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
