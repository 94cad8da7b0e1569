"""Reads a growing `metrics.jsonl`: what was added since the last look.

Place in the flow: under `cptron watch`. Invariant: a line is read once it is whole, and a file that was replaced, as a
resume and a rollback do, is read again from its beginning.
"""

from __future__ import annotations

import os
from pathlib import Path

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.report.status import Record

MOST_BYTES = 64 << 20
"""Of a file that is longer only the end is read."""


class Follower:
    """One file of records, which may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id = (0, 0)
        self._offset = 0
        self._partial = b""
        self.bad_lines = 0
        """Whole lines that are no records."""

    def read(self) -> tuple[list[Record], bool]:
        """Records that are new, and whether they are from the beginning: then nothing known before holds. Raises
        `DataError` where the file cannot be read."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                is_new = (found.st_dev, found.st_ino) != self._file_id or found.st_size < self._offset
                if is_new:
                    self._file_id, self._partial, self.bad_lines = (found.st_dev, found.st_ino), b"", 0
                    self._offset = max(0, found.st_size - MOST_BYTES)
                skips = is_new and self._offset > 0
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return [], False
        except OSError as error:
            raise DataError(f"{self._path} cannot be read ({error}); give a run's directory") from None
        self._offset += len(text)
        *lines, self._partial = (self._partial + text).split(b"\n")
        return self._records(lines[1:] if skips else lines), is_new

    def _records(self, lines: list[bytes]) -> list[Record]:
        records = []
        for line in lines:
            try:
                record = parse_json(line)
                if not isinstance(record["kind"], str) or type(record["step"]) is not int:
                    raise TypeError(record)
            except (ValueError, TypeError, KeyError):
                self.bad_lines += 1
                continue
            records.append(record)
        return records
