"""Small files of a curation that prove themselves: their bytes, and behind them a check sum.

Place in the flow: records of units, verdicts and hashes of documents; `select/array_file` seals its arrays alike.
Invariant: what is read is what was written, or it is an error; nobody goes on with a file that was cut off or changed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cptron.durable import replacing
from cptron.errors import DataError
from cptron.json_text import parse_json

RESTART = "run the same command with --restart"
SEAL_BYTES = 4


def seal(data: bytes) -> bytes:
    """Four bytes that go behind `data`."""
    return zlib.crc32(data).to_bytes(SEAL_BYTES, "little")


def write_sealed(path: Path, data: bytes) -> None:
    """Write `path`, as it stands: whoever calls makes it durable."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.write(seal(data))


def read_sealed(path: Path, remedy: str = RESTART) -> bytes:
    """What `write_sealed` was given. Raises DataError, with `remedy`, for anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    data = content[:-SEAL_BYTES]
    if len(content) < SEAL_BYTES or content[-SEAL_BYTES:] != seal(data):
        raise DataError(f"{path} has {len(content)} bytes, which are not those that were written; {remedy}")
    return data


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Publish JSON, durably and in one step, with its check sum in a second line."""
    text = json.dumps(record, ensure_ascii=True)
    # Not `replace_text`, which looks for what killed writers left: a run does that once, at its start.
    with replacing(path) as partial:
        partial.write_text(f"{text}\n{seal(text.encode()).hex()}\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` was given. Raises DataError for anything else."""
    try:
        text, check, rest = path.read_bytes().split(b"\n")
        if rest or check != seal(text).hex().encode():
            raise ValueError("it is not what was written")
        record = parse_json(text)
        if isinstance(record, dict):
            return record
        raise ValueError("it is no object")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {RESTART}") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {RESTART}") from None
