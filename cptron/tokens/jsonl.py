"""Reading texts out of JSONL files, plain or gzipped, in order and with bounded memory.

Place in the flow: `preprocess` encodes what this yields.
Invariant: every line becomes exactly one record, in file order, or the whole reading stops with a DataError
that names the file and line.
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptron.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """Texts of one line, and how far into the stored file it lies."""

    texts: tuple[str, ...]
    """One text for each key asked for."""
    num_bytes: int
    """UTF-8 size of the texts."""
    stored_bytes_read: int
    """Bytes of the stored (perhaps compressed) file that have been read to get here."""


def expand_inputs(patterns: Iterable[str]) -> list[Path]:
    """Files that `patterns` (paths or globs) name: in the order given, those of one glob sorted by name.

    Raises DataError when a pattern matches nothing or a file is named twice.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            raise DataError(f"input {pattern} matches 0 files, at least 1 is needed; check the path")
        found += files
    resolved = [path.resolve() for path in found]
    for path, real in zip(found, resolved, strict=True):
        if resolved.count(real) > 1:
            raise DataError(
                f"input {path} is named {resolved.count(real)} times, must be once; narrow the inputs"
            )
    return found


def read_records(path: Path, keys: Sequence[str]) -> Iterator[Record]:
    """Records of `path` (gzipped if its name ends in `.gz`), each with the texts of `keys`."""
    number = 0
    try:
        with path.open("rb") as stored:
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored
            for number, line in enumerate(lines, start=1):
                where = f"{path}:{number}"
                texts = _parse(line, keys, where)
                yield Record(texts, _utf8_bytes(texts, where), stored.tell())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}:{number + 1} must be gzip to its end ({error}); copy the file again"
        ) from error


def _parse(line: bytes, keys: Sequence[str], where: str) -> tuple[str, ...]:
    try:
        content = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} must be one JSON object in UTF-8 ({error}); fix or remove the line"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{where} holds a {type(content).__name__}, must be a JSON object; fix or remove the line"
        )
    return tuple(_text(content, key, where) for key in keys)


def _text(content: dict[str, Any], key: str, where: str) -> str:
    if key not in content:
        raise DataError(
            f"{where} has no key {key!r}, only {sorted(content)}; choose another with --json-keys"
        )
    text = content[key]
    if not isinstance(text, str):
        raise DataError(f"{where} has a {type(text).__name__} at key {key!r}, must be a string; fix the line")
    return text


def _utf8_bytes(texts: Iterable[str], where: str) -> int:
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
        raise DataError(f"{where} has text that must be Unicode ({error.reason}); fix the line") from error
