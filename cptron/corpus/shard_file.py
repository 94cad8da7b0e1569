"""Documents in a file: zstd-compressed JSON lines, between stages and in the output.

Place in the flow: `work` writes one for each shard of a stage, the next stage reads it.
Invariant: the bytes depend on the documents, the level and the versions of zstandard and orjson alone; a file with its
final name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import zstandard

from cptron.corpus.document import Document
from cptron.durable import fsync_path
from cptron.errors import DataError
from cptron.partials import own_partial
from cptron.tokens.manifest import FileRecord
from cptron.tokens.read_stored import DamagedError, StoredStream

SUFFIX = ".jsonl.zst"
BESIDE = ("messages", "document_id")
"""Metadata that stands beside the text, where `preprocess --chat` and `interleave` look for it."""


class ShardWriter:
    """Writes `path` under a name of its own first, which others at the same shard do not have; `publish` gives it its
    final one. A context manager, which leaves nothing that was not published."""

    def __init__(self, path: Path, level: int) -> None:
        self._path, self._partial = path, own_partial(path)
        self._file = self._partial.open("wb")
        self._frame = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def write(self, document: Document) -> None:
        """Append one document."""
        self._put(self._frame.compress(to_line(document)))

    def publish(self) -> FileRecord:
        """Force the file to disk under its name."""
        self._put(self._frame.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._partial.replace(self._path)
        fsync_path(self._path.parent)
        return FileRecord(bytes=self._num_bytes, sha256=self._sha256.hexdigest())

    def _put(self, data: bytes) -> None:
        if data:
            self._file.write(data)
            self._sha256.update(data)
            self._num_bytes += len(data)


def to_line(document: Document) -> bytes:
    """One line of JSON with its end."""
    beside = {key: document.meta[key] for key in BESIDE if key in document.meta}
    record = {
        "text": document.text,
        "id": document.id,
        "source": document.source,
        **beside,
        "meta": {key: value for key, value in document.meta.items() if key not in beside}
        if beside
        else document.meta,
    }
    try:
        return orjson.dumps(record, default=_as_text) + b"\n"
    except TypeError:  # half a surrogate pair, or an integer beyond 64 bits, in the metadata
        return json.dumps(record, default=_as_text).encode() + b"\n"


def _as_text(value: Any) -> str:
    """What tables hold and JSON does not: dates, decimals, bytes."""
    return value.hex() if isinstance(value, bytes) else str(value)


def read_shard(path: Path) -> Iterator[Document]:
    """The documents of a file that a `ShardWriter` published. Raises DataError where it is damaged."""
    rest = b""
    try:
        with StoredStream(path, "zstd", 0) as stream:
            for chunk in stream:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield _document(line)
    except (DamagedError, ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); run the same command with --restart") from None


def _document(line: bytes) -> Document:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = json.loads(line)
        str.encode(record["text"])  # metadata may hold half a surrogate pair, a text may not
    text, name, source, meta = (record[key] for key in ("text", "id", "source", "meta"))
    if not (type(text) is type(name) is type(source) is str and type(meta) is dict):
        raise TypeError("a line is no document")
    beside = {key: record[key] for key in BESIDE if key in record}
    return Document(text, name, source, {**meta, **beside} if beside else meta)
