"""What a curated corpus is and where it came from: `manifest.json` beside its files.

Place in the flow: `publish` writes it last; preprocessing reads it to find and prove the files, and carries it on
beside the token files. Invariant: its presence proves that the curation came to its end; it holds no time, machine or
number of workers, so equal inputs and settings give an equal manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import is_file_name, parse_json
from cptron.tokens.manifest import TokenizerRecord, build_record

MANIFEST = "manifest.json"
FORMAT = "cptron corpus"
FORMAT_VERSION = 1
_REMEDY = "run cptron curate again"


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file that was curated."""

    name: str
    """Source, then the path below what all its files have in common."""
    bytes: int
    """As stored."""
    sha256: str
    """Of the stored bytes, in hex."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFile:
    """A file of the corpus."""

    name: str
    """Beside the manifest."""
    source: str
    """All its documents are of this source."""
    bytes: int
    """As stored."""
    sha256: str
    """Of the stored bytes, in hex."""
    documents: int
    """Lines."""
    text_bytes: int
    """Of the texts, in UTF-8."""
    tokens: int | None
    """Without special tokens; None where no tokenizer was named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What a step did, over all sources."""

    name: str
    """In the pipeline."""
    documents_in: int
    """That came."""
    documents_out: int
    """documents_in + documents_made - the sum of dropped."""
    documents_made: int
    """Beyond the first of each that became several."""
    documents_changed: int
    """With another text than before."""
    bytes_in: int
    """Of texts, in UTF-8."""
    bytes_out: int
    """Of texts, in UTF-8."""
    dropped: Mapping[str, int]
    """Documents by reason."""
    counted: Mapping[str, int]
    """What else the step counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusManifest:
    """Contents of `manifest.json`."""

    format: str
    """`cptron corpus`."""
    format_version: int
    """Version of this record."""
    fingerprint: str
    """SHA-256 of the input files' hashes, of all settings and of the versions that decide: what the corpus is."""
    documents: int
    """In the files."""
    text_bytes: int
    """Of their texts, in UTF-8."""
    tokens: int | None
    """Without special tokens; None where no tokenizer was named."""
    tokenizer: TokenizerRecord | None
    """That counted the tokens."""
    files: tuple[OutputFile, ...]
    """In the order of the sources."""
    inputs: tuple[InputFile, ...]
    """In the order they were read."""
    records_read: int
    """Lines or rows of the input: what came to the first step + all of records_rejected."""
    records_rejected: Mapping[str, int]
    """Damaged records, by reason; quarantine.jsonl has them."""
    steps: tuple[StepRecord, ...]
    """In order."""
    config: Any
    """All settings, with nothing left to defaults."""
    versions: Mapping[str, str]
    """Of the packages that decide the result."""
    cptron_version: str
    """Version that made the files."""


def write_manifest(directory: Path, manifest: CorpusManifest) -> None:
    """Publish it, durably and in one step."""
    replace_text(directory / MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=True) + "\n")


def read_manifest(directory: Path) -> CorpusManifest | None:
    """The manifest of a curated corpus; None where `directory` is none. Raises DataError where it is damaged."""
    path = directory / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = parse_json(text)
    except ValueError:
        return None  # some other program's file
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    return parse_manifest(path, content)


def parse_manifest(path: Path, content: Mapping[str, Any]) -> CorpusManifest:
    """A manifest from the JSON found in `path`. Raises DataError when a field is missing or of another type."""
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format_version {version}, only {FORMAT_VERSION} can be read; {_REMEDY}")
    try:
        manifest: CorpusManifest = build_record(CorpusManifest, content, "manifest")
        for file in manifest.files:
            if not is_file_name(file.name):
                raise TypeError(f"the file name {file.name!r:.80} must be one beside the manifest")
    except TypeError as error:
        raise DataError(f"{path} is damaged: {error}; {_REMEDY}") from error
    return manifest


def fingerprint(inputs: Iterable[InputFile], decides: Any) -> str:
    """Identity of a corpus: the content of the inputs, and JSON of all else that decides."""
    content = [[file.name, file.bytes, file.sha256] for file in inputs]
    return hashlib.sha256(json.dumps([content, decides], sort_keys=True).encode()).hexdigest()


def require_sizes(directory: Path, manifest: CorpusManifest) -> None:
    """Raise DataError unless every file is there in its size."""
    for file in manifest.files:
        path = directory / file.name
        actual = path.stat().st_size if path.is_file() else None
        if actual != file.bytes:
            raise DataError(f"{path} has {actual} bytes, its manifest requires {file.bytes}; {_REMEDY}")
