"""Damaged records: kept beside their shard while the work goes on, then together in one file.

Place in the flow: `work` adds what `read` and the steps could not use; `publish` joins the shards' files.
Invariant: a record is there with its line in the file, though it was read in a part of the file by somebody who did
not know how many lines come before.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from cptron.corpus.sealed import RESTART
from cptron.corpus.shards import Shard
from cptron.durable import fsync_path, replacing
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.partials import own_partial
from cptron.tokens.records import Reject
from cptron.tokens.rejects import to_line

QUARANTINE = "quarantine.jsonl"
_PIECE = "piece"
"""Index of the record's piece in its shard, while the file is one of a shard."""


class Quarantine:
    """Damaged records of one shard; there is a file only if there are any. A context manager, which leaves nothing that
    was not published."""

    def __init__(self, directory: Path, shard: int) -> None:
        self._path = quarantine_path(directory, shard)
        self._partial = own_partial(self._path)
        self._file: BinaryIO | None = None
        self.records: list[int] = []
        """Records of each piece, damaged or not."""
        self.rejected: Counter[str] = Counter()
        """Records that are no documents, by reason."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def add(self, reject: Reject, piece: int | None) -> None:
        """Write it down; `piece` is the index of its piece in the shard, None where it names no line."""
        if self._file is None:
            self._file = self._partial.open("wb")
        content = json.loads(to_line(reject)) | {_PIECE: piece}
        self._file.write(json.dumps(content).encode() + b"\n")

    def publish(self) -> None:
        """Force the file to disk under its name."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self._path)
        else:
            self._path.unlink(missing_ok=True)
        fsync_path(self._path.parent)


def quarantine_path(directory: Path, shard: int) -> Path:
    """Damaged records of a shard."""
    return directory / f"{shard:05d}.{QUARANTINE}"


def publish_quarantine(
    directories: Sequence[Path], shards: Sequence[Shard], records: Sequence[Mapping[str, Any]], output: Path
) -> None:
    """Join the files of all stages (their `directories`) and shards, in order, into one of `output`; no file without
    any record. `records` are those of the first stage's shards."""
    final = output / QUARANTINE
    lines = _all_numbered(directories, shards, records)
    first = next(lines, None)
    if first is None:
        final.unlink(missing_ok=True)
        return
    with replacing(final) as partial, partial.open("wb") as stream:
        stream.write(first)
        stream.writelines(lines)


def _all_numbered(
    directories: Sequence[Path], shards: Sequence[Shard], records: Sequence[Mapping[str, Any]]
) -> Iterator[bytes]:
    for directory in directories:
        before: Counter[str] = Counter()
        for shard, record in zip(shards, records, strict=True):
            counts = record["records_of_pieces"]
            starts = []
            for piece, count in zip(shard.pieces, counts, strict=True):
                is_lines = piece.input.kind == "jsonl"  # rows of tables are numbered in the file
                starts.append(before[piece.name] if is_lines else 0)
                before[piece.name] += count
            yield from _numbered(quarantine_path(directory, shard.number), starts)


def _numbered(path: Path, starts: Sequence[int]) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                content = parse_json(line)
                piece = content.pop(_PIECE)
                if piece is not None:
                    content["record"] += starts[piece]
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise DataError(f"{path} is damaged ({error}); {RESTART}") from None
            yield json.dumps(content).encode() + b"\n"
