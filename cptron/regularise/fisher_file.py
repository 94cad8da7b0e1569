"""What a directory of Fisher information looks like, and how it is proven.

    FISHER/
      fisher.json       what it was made of, and size and sha256 of every file; written last
      fisher.sha256     sha256 of that, as `sha256sum -c` reads it
      shards/           a number for each weight, in the blocks and under the names of a checkpoint's weights

Place in the flow: written by `cptron fisher`, read by runs with `regularise.ewc`. Imports no torch. Invariant: it is no
checkpoint and cannot be taken for one; a record that is read names files that are there in their sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cptron.checkpoint.block_file import FileRecord
from cptron.checkpoint.hashing import hash_file, hash_files
from cptron.durable import replace_text
from cptron.errors import CheckpointError
from cptron.json_text import is_file_name, parse_json
from cptron.typed import require_types

RECORD, DIGEST, SHARDS = "fisher.json", "fisher.sha256", "shards"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FisherRecord:
    """What the numbers are."""

    estimator: Literal["sequences", "batches", "adam"]
    """`sequences`: squares of the gradients of single sequences. `batches`: of sums over batches, an approximation.
    `adam`: a run's second moments, an approximation."""
    checkpoint: str
    """Whose weights; its path when it was made."""
    weights_fingerprint: str
    data: str = ""
    """Identity of the token files; empty for `adam`."""
    sequences: int = 0
    batch_size: int = 1
    seq_length: int = 0
    seed: int = 0
    tokens: int = 0
    """Predicted."""
    mean: float
    """Of the information over all weights, by which it was divided: nats^2 per sequence and squared unit of weight."""
    elements: int
    clipped: int
    """Weights whose information was cut to the largest that is stored."""
    precision: str = ""
    """Of the model that it was computed with."""
    checksums: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def write_record(working: Path, record: FisherRecord, known: Mapping[str, FileRecord]) -> FisherRecord:
    """Complete the record with all files of `working` and write it there; `known` were hashed when they were written.
    Raises OSError."""
    found = {str(path.relative_to(working)) for path in working.rglob("*") if path.is_file()}
    hashed = hash_files(working, sorted(found - known.keys()))
    complete = replace(record, files={**known, **hashed})
    text = json.dumps(asdict(complete), indent=1)
    replace_text(working / RECORD, text)
    replace_text(working / DIGEST, f"{hashlib.sha256(text.encode()).hexdigest()}  {RECORD}\n")
    return complete


def read_record(directory: Path) -> FisherRecord:
    """The record of a directory of Fisher information. Raises `CheckpointError` where it is none, or damaged."""
    path = directory / RECORD
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no Fisher information: it has no {RECORD}; make it with cptron fisher"
        )
    try:
        content = path.read_bytes()
        values = parse_json(content)
        if values["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format_version {values['format_version']}, this version reads {FORMAT_VERSION}; "
                "make it again with this version's cptron fisher"
            )
        digest = f"{hashlib.sha256(content).hexdigest()}  {RECORD}\n"
        if path.with_name(DIGEST).read_bytes() != digest.encode():
            raise ValueError(f"its sha256 is not the one in {DIGEST}")
        record = _record(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); make it again with cptron fisher") from None
    for name, file in record.files.items():
        there = directory / name
        size = there.stat().st_size if there.is_file() else None
        if size != file.size:
            raise CheckpointError(
                f"{directory} is damaged: {name} has {size} bytes, expected {file.size}; make it again"
            )
    return record


def _record(values: Mapping[str, Any]) -> FisherRecord:
    files = {name: FileRecord(**file) for name, file in values["files"].items()}
    for name, file in files.items():
        parts = Path(name).parts
        if ".." in parts or not all(map(is_file_name, parts)) or type(file.size) is not int:
            raise ValueError(f"file {name!r:.80} is not one of Fisher information")
    record = FisherRecord(**{**values, "files": files})
    require_types(record)
    return record


def damaged_files(directory: Path, record: FisherRecord, part: tuple[int, int]) -> list[str]:
    """Names of files that are not those that were written; `part` (n, of): of every `of`-th from the n-th on."""
    wrong = []
    for name in sorted(record.files)[part[0] :: part[1]]:
        try:
            found = hash_file(directory / name)
        except OSError:
            wrong.append(name)
            continue
        if found != record.files[name]:
            wrong.append(name)
    return wrong
