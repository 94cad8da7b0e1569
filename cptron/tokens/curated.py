"""Curated corpora among the inputs: proven while they are read, and their manifests carried on beside the token files.

Place in the flow: `preprocess` asks here what `cptron curate` says of its inputs; planning and the data ledger read
what is left beside the token files. Invariant: a file that a corpus manifest names is encoded as the manifest has it,
or the run stops; `PREFIX.corpus.json` is there before the token files' own manifest, and only if an input was curated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cptron.corpus.manifest import CorpusManifest, OutputFile, parse_manifest, read_manifest
from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.inputs import Input
from cptron.tokens.manifest import SourceRecord

_REMEDY = "run cptron curate again, or copy the corpus again"


@dataclass(frozen=True, slots=True)
class Curated:
    """One corpus that some of the inputs are files of."""

    directory: Path
    manifest: CorpusManifest
    files: Mapping[Path, OutputFile]
    """Those that the manifest names, by their paths."""


def curated_among(inputs: Sequence[Input]) -> tuple[Curated, ...]:
    """The corpora, in the order of their first file. Raises DataError where a file has another size than its manifest
    says."""
    found: dict[Path, Curated | None] = {}
    for source in inputs:
        directory = source.path.parent
        if directory not in found:
            manifest = read_manifest(directory)
            found[directory] = _curated(directory, manifest) if manifest else None
        curated = found[directory]
        file = curated.files.get(source.path) if curated else None
        if file and source.path.stat().st_size != file.bytes:
            raise DataError(
                f"{source.path} has {source.path.stat().st_size} bytes, its manifest requires {file.bytes}; {_REMEDY}"
            )
    named = {source.path for source in inputs}
    return tuple(one for one in found.values() if one and not named.isdisjoint(one.files))


def _curated(directory: Path, manifest: CorpusManifest) -> Curated:
    return Curated(directory, manifest, {directory / file.name: file for file in manifest.files})


def require_sources(corpora: Sequence[Curated], sources: Sequence[SourceRecord]) -> None:
    """Raise DataError where a file that was read is not the one that its corpus's manifest describes."""
    for source in sources:
        for curated in corpora:
            file = curated.files.get(Path(source.path))
            if file and file.sha256 != source.sha256:
                raise DataError(
                    f"{source.path} has SHA-256 {source.sha256[:12]}, its manifest requires {file.sha256[:12]}; "
                    f"{_REMEDY}"
                )


def corpus_path(prefix: str | Path) -> Path:
    """Where the manifests of the corpora behind token files are."""
    return Path(f"{prefix}.corpus.json")


def write_corpora(prefix: str | Path, manifests: Sequence[CorpusManifest]) -> None:
    """Leave them beside the token files; nothing where there are none."""
    if not manifests:
        corpus_path(prefix).unlink(missing_ok=True)
        return
    content = [asdict(manifest) for manifest in manifests]
    replace_text(corpus_path(prefix), json.dumps(content, indent=2, ensure_ascii=True) + "\n")


def read_corpora(prefix: str | Path) -> list[CorpusManifest]:
    """Manifests of the curated corpora that the token files `prefix` were made of. Raises DataError where they are
    damaged."""
    path = corpus_path(prefix)
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DataError(f"{path} must be JSON ({error}); run preprocess again") from error
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise DataError(f"{path} holds no list of manifests; run preprocess again")
    return [parse_manifest(path, item) for item in content]
