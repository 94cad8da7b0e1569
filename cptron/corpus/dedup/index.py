"""Features of a finished corpus, kept so that later corpora can leave out what is already there.

Place in the flow: the step `near_duplicates` writes one if asked to, and reads those named in its configuration.
Invariant: an index is only read once it is published; its record names every file with its size and hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cptron.corpus.dedup.feature_file import FeatureFile
from cptron.durable import own_directory
from cptron.errors import DataError
from cptron.json_text import is_file_name, parse_json
from cptron.partials import remove_partials

RECORD = "index.json"
_MAX_RECORD_BYTES = 64 << 20


def publish_index(features: Sequence[Path], directory: Path) -> None:
    """Make the index `directory` of files of features, in order; an older index there is replaced. Files are linked
    where the disk allows it. Raises DataError where `directory` is something else."""
    if directory.exists() and not (directory / RECORD).is_file():
        raise DataError(
            f"{directory} exists and is no index, must be new; choose another directory or remove it"
        )
    try:
        remove_partials([directory.parent], only_stale=True)
        with own_directory(directory, replaces=True) as own:
            record = [_add(path, own / f"{number:05d}.features") for number, path in enumerate(features)]
            (own / RECORD).write_text(json.dumps({"files": record}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{directory} cannot be written ({error.strerror}); choose another directory"
        ) from None


def open_index(directory: Path) -> list[FeatureFile]:
    """Its files, in order. Raises DataError where it is missing, or not what its record says."""
    return [_opened(directory, name, num_bytes) for name, num_bytes in _files_of(directory)]


def num_files_of(directory: Path) -> int:
    """How many files `open_index` opens. Raises DataError as it does."""
    return len(_files_of(directory))


def _files_of(directory: Path) -> list[tuple[str, int]]:
    """Names and bytes."""
    path = record_path(directory)
    try:
        with path.open("rb") as stream:
            entries = parse_json(stream.read(_MAX_RECORD_BYTES))["files"]
        names = [(entry["name"], entry["bytes"]) for entry in entries]
        if not all(is_file_name(name) and type(num_bytes) is int for name, num_bytes in names):
            raise ValueError("no names and sizes of files")
        return names
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); name a directory that save_index made"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is no record of an index; make the index again") from None


def record_path(directory: Path) -> Path:
    """The file that stands for the whole index: it has the hashes of all others."""
    return directory / RECORD


def _add(source: Path, target: Path) -> dict[str, object]:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    with target.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": target.name, "bytes": target.stat().st_size, "sha256": digest}


def _opened(directory: Path, name: str, num_bytes: int) -> FeatureFile:
    path = directory / name
    file = FeatureFile(path)
    found = path.stat().st_size
    if found != num_bytes:
        file.close()
        raise DataError(f"{path} has {found} bytes, must have {num_bytes}; make the index again")
    return file
