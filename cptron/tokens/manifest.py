"""What a pair of token files is and where it came from: `PREFIX.manifest.json`.

Place in the flow: `preprocess` writes it after `.bin` and `.idx` are durable; a run reads it to prove that
its data is whole and was made with its tokenizer. Invariant: the manifest is written last and atomically,
so its presence proves that preprocessing completed; it holds no time and no host, so the same command on equal
inputs gives an equal manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.index_layout import bin_path, idx_path, loss_mask_path

FORMAT_VERSION = 2
PARTITION_OF = "partition_of"
"""Option of a part: the hash of the list of inputs that was cut."""
_REMEDY = "run preprocess again"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """Size and content of one file."""

    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of its bytes, in hex."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """One input file of the corpus, as it was named on the command line."""

    path: str
    """Path as given; for people, not for reading again."""
    bytes: int
    """Size of the file as stored (compressed, if it is)."""
    sha256: str
    """SHA-256 of the stored bytes, in hex."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRecord:
    """The tokenizer that made the ids."""

    name: str
    """Name for people."""
    fingerprint: str
    """`Tokenizer.fingerprint`: what a run compares."""
    vocab_size: int
    """Largest id + 1."""
    eos_id: int | None
    """Id that ends a document, if there is one."""
    bos_id: int | None
    """Id that begins a document, if there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Contents of `PREFIX.manifest.json`."""

    format_version: int
    """Version of this record."""
    documents: int
    """Documents in the files."""
    tokens: int
    """Tokens in the files, BOS and EOS included."""
    dtype: str
    """Type of one id in `.bin`."""
    files: Mapping[str, FileRecord]
    """`bin` and `idx`; also `loss_mask` where documents have one."""
    tokenizer: TokenizerRecord
    """The tokenizer that made the ids."""
    append_eod: bool
    """Every document ends with EOS."""
    prepend_bos: bool
    """Every document begins with BOS."""
    key: str
    """JSON key the text was taken from."""
    sources: tuple[SourceRecord, ...]
    """Input files, in the order they were read."""
    records_read: int
    """Lines or rows of the input: documents + documents_empty_skipped + all of documents_rejected."""
    documents_empty_skipped: int
    """Records whose text gave no tokens."""
    documents_rejected: Mapping[str, int]
    """Records that were left out because they were damaged, by reason; empty under `--on-error stop`."""
    engine: str
    """Library that made the ids, with its version, and how it was checked against the reference tokenizer."""
    partition: str
    """`2/8` for the third of eight parts of the corpus; empty for the whole."""
    options: Mapping[str, str]
    """Other options of the command that made the files."""
    cptron_version: str
    """Version that made the files."""


def manifest_path(prefix: str | Path) -> Path:
    """Path of the manifest of `prefix`."""
    return Path(f"{prefix}.manifest.json")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Publish `manifest` beside its files, durably and in one step."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False)
    replace_text(manifest_path(prefix), text + "\n")


def load_manifest(prefix: str | Path) -> Manifest:
    """Read the manifest of `prefix`. Raises DataError when it is missing, damaged, or sizes disagree."""
    path = manifest_path(prefix)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist, so {prefix} is not known to be complete; {_REMEDY}"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} must be JSON ({error}); {_REMEDY}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format_version {version}, only {FORMAT_VERSION} can be read; {_REMEDY}")
    manifest = parse_manifest(path, content)
    for kind, record in manifest.files.items():
        file = _file(prefix, kind)
        actual = file.stat().st_size if file.is_file() else None
        if actual != record.bytes:
            raise DataError(f"{file} has {actual} bytes, its manifest requires {record.bytes}; {_REMEDY}")
    return manifest


def verify(prefix: str | Path) -> Manifest:
    """Read both files again and compare their hashes. Raises DataError at the first difference."""
    manifest = load_manifest(prefix)
    for kind, record in manifest.files.items():
        actual = hash_file(_file(prefix, kind)).sha256
        if actual != record.sha256:
            raise DataError(
                f"{_file(prefix, kind)} has SHA-256 {actual[:12]}, its manifest requires {record.sha256[:12]}; "
                f"copy the file again or {_REMEDY}"
            )
    return manifest


def check_tokenizer(prefix: str | Path, manifest: Manifest, fingerprint: str) -> None:
    """Raise DataError unless `prefix` was made with the tokenizer that has `fingerprint`."""
    made_with = manifest.tokenizer
    if made_with.fingerprint != fingerprint:
        raise DataError(
            f"{prefix} was made with tokenizer {made_with.name!r} {made_with.fingerprint[:12]}, the run uses "
            f"{fingerprint[:12]}; preprocess the corpus again with the run's tokenizer"
        )


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of `path`."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(bytes=stream.tell(), sha256=sha256)


def _file(prefix: str | Path, kind: str) -> Path:
    return {"bin": bin_path, "idx": idx_path, "loss_mask": loss_mask_path}[kind](prefix)


def parse_manifest(path: Path, content: Any) -> Manifest:
    """A manifest from the JSON found in `path`. Raises DataError when a field is missing or of another type."""
    try:
        manifest: Manifest = build_record(Manifest, content, "manifest")
        if {"bin", "idx"} != manifest.files.keys() - {"loss_mask"}:
            raise TypeError(f"files are {sorted(manifest.files)}, must be bin and idx, and loss_mask at most")
    except TypeError as error:
        raise DataError(f"{path} is damaged: {error}; {_REMEDY}") from error
    return manifest


def build_record(kind: Any, value: Any, name: str) -> Any:
    """`value`, which came from JSON, as the type `kind` of a record or of its field. Raises TypeError naming it."""
    if kind is Any:
        return value
    if get_origin(kind) in (Union, UnionType) and isinstance(value, dict):
        kind = next((choice for choice in get_args(kind) if is_dataclass(choice)), kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        if kinds.keys() != value.keys():
            raise TypeError(f"{name} has other fields than it must: {sorted(kinds.keys() ^ value.keys())}")
        return kind(**{field: build_record(kinds[field], value[field], field) for field in kinds})
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(build_record(get_args(kind)[0], item, name) for item in value)
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return {key: build_record(get_args(kind)[1], item, f"{name}.{key}") for key, item in value.items()}
    choices = (kind,) if get_origin(kind) in (tuple, Mapping) else get_args(kind) or (kind,)
    if type(value) not in choices:  # `type`, because a bool is also an int
        raise TypeError(f"{name} is {value!r:.200}, must be {getattr(kind, '__name__', kind)}")
    return value
