"""Writes token files from sequences and documents that other token files have already.

Place in the flow: `merge` and `split` write through it; `indexed_writer` is the one for new documents.
Invariant: nothing has its final name before all of it is durable, and `.idx` comes after what it describes.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cptron.errors import DataError
from cptron.tokens.index_layout import Int32Array, Int64Array
from cptron.tokens.manifest import FileRecord
from cptron.tokens.partial_file import PartialFile
from cptron.tokens.publish import publish, write_index


class SequenceWriter:
    """Streams tokens, loss masks and document borders into new token files; memory use stays bounded.

    Use it as a context manager: leaving the block removes what has not been published.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype[np.integer[Any]], *, with_mask: bool) -> None:
        """Create temporary files beside `prefix`."""
        self.prefix = str(prefix)
        self._dtype = dtype
        self.num_documents = 0
        """Documents added so far, those without tokens included."""
        self._num_sequences = 0
        # Names of its own, so that two writers of one prefix cannot mix their bytes.
        self._tag = secrets.token_hex(4)
        self._files: dict[str, PartialFile] = {}
        names = ("bin", "lengths", "documents", *(["loss_mask"] if with_mask else []))
        try:
            for name in names:
                self._open(name)
        except OSError:
            self.discard()
            raise

    def _open(self, name: str) -> PartialFile:
        self._files[name] = PartialFile(Path(f"{self.prefix}.{name}.{self._tag}"))
        return self._files[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._files["bin"].num_bytes // self._dtype.itemsize

    def add_tokens(self, content: memoryview) -> None:
        """Append ids, as the bytes of `.bin`."""
        self._files["bin"].write(content)

    def add_mask(self, content: memoryview) -> None:
        """Append the loss mask of tokens, one byte each."""
        self._files["loss_mask"].write(content)

    def add_documents(self, sequence_lengths: Int32Array, sequence_counts: Int64Array) -> None:
        """Append documents: tokens of each sequence, and sequences of each document."""
        self._files["lengths"].write(sequence_lengths.astype("<i4").tobytes())
        ends = self._num_sequences + np.cumsum(sequence_counts, dtype=np.int64)
        self._files["documents"].write(ends.astype("<i8").tobytes())
        self._num_sequences += len(sequence_lengths)
        self.num_documents += len(sequence_counts)

    def finish(self) -> dict[str, FileRecord]:
        """Write the index and make everything durable; returns what a manifest says of each file.

        Raises DataError when there are no tokens.
        """
        if self.num_tokens == 0:
            raise DataError(
                f"{self.prefix} would hold 0 tokens in {self.num_documents} documents, at least 1 is needed; "
                "choose other documents"
            )
        documents = self._files["documents"].read_back()
        write_index(self._open("idx"), self._files["lengths"], self._dtype, self.num_documents, documents)
        for file in self._published().values():
            file.sync()
        return {kind: file.record for kind, file in self._published().items()}

    def publish(self) -> None:
        """Give the finished files their names, in place of older ones; a manifest is for the caller to write."""
        publish(self.prefix, {kind: file.path for kind, file in self._published().items()})

    def discard(self) -> None:
        """Remove what has not been published."""
        for file in self._files.values():
            file.discard()

    def _published(self) -> dict[str, PartialFile]:
        return {kind: self._files[kind] for kind in ("bin", "idx", "loss_mask") if kind in self._files}
