"""All files of a run: token files of each key and the quarantine file; written, checkpointed and published as one.

Place in the flow: `preprocess` adds encoded blocks in order. Invariant: after any stop, the files hold at least what
the last checkpoint tells of; published names appear only once all files are whole and durable, manifests last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cptron.corpus.manifest import CorpusManifest
from cptron.durable import fsync_path, partial_path
from cptron.tokens.curated import write_corpora
from cptron.tokens.encode import Encoded
from cptron.tokens.indexed_writer import IndexedWriter, discard_partials, publish_partials
from cptron.tokens.journal import Checkpoint
from cptron.tokens.manifest import FileRecord, Manifest, load_manifest, manifest_path, write_manifest
from cptron.tokens.publish import refuse_existing
from cptron.tokens.records import Position
from cptron.tokens.rejects import OnError, Rejects, quarantine_path


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputNames:
    """Where a run writes."""

    run: str
    """Prefix of what belongs to the run: journal, lock, quarantine."""
    prefixes: Sequence[str]
    """Prefix of the token files of each key."""


class Outputs:
    """The open partial files of a run."""

    def __init__(
        self,
        names: OutputNames,
        dtype: np.dtype[np.integer[Any]],
        on_error: OnError,
        *,
        with_mask: bool,
        resume: Checkpoint | None,
    ) -> None:
        """Begin, or go on from `resume`. Raises DataError when its files are not there any more."""
        self.names = names
        states = resume.writers if resume else [None] * len(names.prefixes)
        rejected, num_bytes = (resume.rejected, resume.quarantine_bytes) if resume else ({}, None)
        self.rejects = Rejects(names.run, on_error, rejected, num_bytes)
        self.writers: list[IndexedWriter] = []
        try:
            for prefix, state in zip(names.prefixes, states, strict=True):
                self.writers.append(IndexedWriter(prefix, dtype, with_mask=with_mask, resume=state))
        except BaseException:
            self.close()
            raise
        self._empty = list(resume.empty) if resume else [0] * len(names.prefixes)
        self._records_read = resume.records_read if resume else 0
        self.checkpoint = self._checkpoint(resume.position if resume else Position(0, 0, 0))
        """The moment after the last whole block."""

    def add(self, block: Encoded) -> None:
        """Append one block. Raises DamagedRecordError under `--on-error stop`, OSError when the disk is full."""
        self.rejects.take(block.rejects)
        for number, (writer, documents) in enumerate(zip(self.writers, block.outputs, strict=True)):
            if len(documents.lengths):
                writer.add_block(documents.tokens, documents.lengths, documents.mask)
            self._empty[number] += documents.num_empty
        self._records_read += block.num_records
        self.checkpoint = self._checkpoint(block.end)

    def _checkpoint(self, position: Position) -> Checkpoint:
        return Checkpoint(
            position,
            self._records_read,
            tuple(self._empty),
            self.rejects.counts,
            [writer.state for writer in self.writers],
            self.rejects.num_bytes,
        )

    def sync(self) -> None:
        """Force everything added so far to disk."""
        for writer in self.writers:
            writer.sync()
        self.rejects.sync()

    def seal(self) -> list[dict[str, FileRecord]]:
        """Complete all files, durably; what a manifest says of the files of each key."""
        files = [writer.seal() for writer in self.writers]
        self.rejects.sync()
        return files

    def close(self) -> None:
        """Leave the partial files as they are."""
        for writer in self.writers:
            writer.close()
        self.rejects.close()


def publish_outputs(
    names: OutputNames, manifests: Sequence[Manifest], corpora: Sequence[CorpusManifest]
) -> None:
    """Give all files their names, manifests last; `corpora` are those of the curated corpora that were read. May be
    called again after it was cut off.

    Raises DataError when a file is neither at its partial nor at its final place.
    """
    for prefix in names.prefixes:
        manifest_path(prefix).unlink(missing_ok=True)
    for prefix, manifest in zip(names.prefixes, manifests, strict=True):
        publish_partials(prefix, manifest.files)
    quarantine = quarantine_path(names.run)
    partial = partial_path(quarantine)
    # What the manifest tells of, not what lies there: it may be of an earlier run of this name.
    if not manifests[0].documents_rejected or manifests[0].options["on_error"] != "quarantine":
        quarantine.unlink(missing_ok=True)
    elif partial.exists():
        partial.replace(quarantine)
        fsync_path(quarantine.parent)
    partial.unlink(missing_ok=True)
    for prefix, manifest in zip(names.prefixes, manifests, strict=True):
        write_corpora(prefix, corpora)
        write_manifest(prefix, manifest)
        load_manifest(prefix)


def discard_outputs(names: OutputNames) -> None:
    """Remove what an abandoned run left."""
    for prefix in names.prefixes:
        discard_partials(prefix)
    partial_path(quarantine_path(names.run)).unlink(missing_ok=True)


def refuse_existing_outputs(names: OutputNames) -> None:
    """Raise DataError when a file of an earlier run would be replaced."""
    refuse_existing(names.prefixes, quarantine_path(names.run))
