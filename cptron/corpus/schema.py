"""What a curation file says: inputs, steps, output.

Place in the flow: `load` makes a `CurateConfig` of YAML; everything after it works from that.
Invariant: holds values only; what decides the output is in it, and how fast it is made is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class InputConfig:
    """One source of documents."""

    name: str
    """Names the output's files and counts; letters, digits, `.`, `_` and `-`."""
    paths: tuple[str, ...]
    """JSONL (.gz, .zst), Parquet, Arrow, text (a file is a document) and ZIP files, directories, globs, Hugging Face
    datasets on disk."""
    text_key: str = ""
    """Key or column of the text; empty to find it from the first records."""
    meta_keys: tuple[str, ...] = ("*",)
    """Other keys that are kept as metadata; `*` keeps all, an empty list none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """The file without its steps."""

    output: str
    """Directory of the curated corpus; unfinished work and intermediate results are in its `.work`."""
    inputs: tuple[InputConfig, ...]
    """Sources in the order that decides which of several equal documents is the first."""
    seed: int = 0
    """Of everything drawn at random."""
    strict: bool = False
    """Every record must hold its text at `text`, or at the `text_key` given; nothing is guessed."""
    tokenizer: str = ""
    """Directory or file of a tokenizer; the manifest then counts tokens too."""
    max_document_bytes: int = 64 << 20
    """A longer record is a damaged one, and is never held in memory."""
    shard_bytes: int = 32 << 20
    """Of the stored input, that are worked on as one; a compressed file is one shard."""
    compression_level: int = 3
    """Of zstd in the output."""
    keep_intermediate: bool = True
    """Keep what every stage made, so that a changed configuration begins at the first stage that changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    """One step of the pipeline."""

    step: str
    """Its name in the registry."""
    name: str
    """Unique in the pipeline."""
    sources: tuple[str, ...]
    """Sources whose documents it looks at; empty for all. Others pass it by."""
    settings: Any
    """The step's own `Config`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """Everything that decides the output."""

    corpus: CorpusConfig
    steps: tuple[StepConfig, ...]
