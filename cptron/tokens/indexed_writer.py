"""The streaming writer of token files in Megatron's `.bin`/`.idx` layout, which can go on after a stop.

Place in the flow: `outputs` writes new documents through it; `indexed` reads what it made.
Invariant: a `.idx` is published only after the `.bin` it describes, and neither before it is durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cptron.durable import partial_path
from cptron.errors import DataError
from cptron.tokens.index_layout import CHUNK, CODE_OF_DTYPE, Int32Array, bin_path, idx_path, loss_mask_path
from cptron.tokens.manifest import FileRecord
from cptron.tokens.partial_file import PartialFile
from cptron.tokens.publish import publish, write_index


def best_dtype(vocab_size: int) -> np.dtype[np.integer[Any]]:
    """Smallest token type for `vocab_size` ids, by Megatron's rule (so that files stay byte-identical)."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class WriterState:
    """How far a writer has come; what its files hold beyond that is cut off on a resume."""

    documents: int
    tokens: int
    sizes: Mapping[str, int]
    """Bytes of each partial file."""


class IndexedWriter:
    """Streams documents into `PREFIX.bin` and `PREFIX.idx`; memory use does not grow with their number.

    Its partial files have fixed names, so that only one writer of a prefix may exist; `preprocess` holds a lock. Use
    it as a context manager: without `finish` or `close`, leaving the block removes everything it wrote.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: npt.DTypeLike,
        *,
        with_mask: bool = False,
        resume: WriterState | None = None,
    ) -> None:
        """Open the partial files beside `prefix`. Raises DataError when `dtype` cannot be stored, or what `resume`
        tells of is not there."""
        self._dtype = np.dtype(dtype)
        if self._dtype.name not in CODE_OF_DTYPE:
            raise DataError(
                f"dtype {self._dtype.name} must be one of {sorted(CODE_OF_DTYPE)}; use best_dtype"
            )
        self._limits = np.iinfo(self._dtype)
        self._prefix = str(prefix)
        self.num_documents = resume.documents if resume else 0
        """Documents added so far."""
        self.num_tokens = resume.tokens if resume else 0
        """Tokens added so far."""
        self._files: dict[str, PartialFile] = {}
        self._kept = False
        names = ["bin", "lengths", *(["loss_mask"] if with_mask else [])]
        try:
            for name in names:
                size = resume.sizes[name] if resume else None
                self._files[name] = PartialFile(_final(self._prefix, name), size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept:
            self.discard()

    @property
    def state(self) -> WriterState:
        """What a resume needs; durable once `sync` has returned."""
        sizes = {name: file.num_bytes for name, file in self._files.items()}
        return WriterState(self.num_documents, self.num_tokens, sizes)

    def add(self, tokens: npt.ArrayLike) -> None:
        """Append one document of integer ids [length]. Raises DataError when empty or an id does not fit."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or ids.size == 0:
            raise DataError(
                f"a document of shape {ids.shape} must be one row of >= 1 tokens; skip empty ones"
            )
        if ids.dtype.kind not in "iu":
            raise DataError(f"token ids have dtype {ids.dtype}, must be integers; convert them before adding")
        if ids.min() < self._limits.min or ids.max() > self._limits.max:
            raise DataError(
                f"token ids {ids.min()}..{ids.max()} must lie in {self._limits.min}..{self._limits.max} of "
                f"{self._dtype.name}; use best_dtype of the whole vocabulary"
            )
        self.add_block(ids.astype(self._dtype), np.array([ids.size], np.int32))

    def add_block(
        self,
        tokens: npt.NDArray[np.integer[Any]],
        lengths: Int32Array,
        mask: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Append documents: all ids one after the other in the file's dtype, tokens of each document (>= 1), and, for
        a writer with mask, 1 for each learned token."""
        assert tokens.dtype == self._dtype and lengths.dtype == np.int32
        assert (mask is not None) == ("loss_mask" in self._files)
        self._files["bin"].write(np.ascontiguousarray(tokens).data)
        if mask is not None:
            self._files["loss_mask"].write(np.ascontiguousarray(mask).data)
        self._files["lengths"].write(lengths.astype("<i4").data)
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def sync(self) -> None:
        """Force all documents added so far to disk."""
        for file in self._files.values():
            file.sync()

    def seal(self) -> dict[str, FileRecord]:
        """Write the index and make everything durable; returns what a manifest says of each file."""
        self._files["idx"] = PartialFile(idx_path(self._prefix))
        write_index(
            self._files["idx"], self._files["lengths"], self._dtype, self.num_documents, self._document_ends()
        )
        self.sync()
        return {name: file.record for name, file in self._files.items() if name != "lengths"}

    def finish(self) -> None:
        """Make the files durable and publish them, `.bin` before `.idx`. Raises DataError when empty."""
        if self.num_documents == 0:
            raise DataError(f"{self._prefix} would hold 0 documents, at least 1 is needed; check the input")
        self.seal()
        publish_partials(self._prefix, [name for name in self._files if name != "lengths"])
        self.discard()

    def close(self) -> None:
        """Keep the partial files, for a resume or for `publish`."""
        self._kept = True
        for file in self._files.values():
            file.close()

    def discard(self) -> None:
        """Remove what has not been published."""
        for file in self._files.values():
            file.discard()

    def _document_ends(self) -> Iterator[bytes]:
        """Each document is one sequence."""
        for start in range(1, self.num_documents + 1, CHUNK):
            yield np.arange(start, min(start + CHUNK, self.num_documents + 1), dtype="<i8").tobytes()


def publish_partials(prefix: str, kinds: Iterable[str]) -> None:
    """Give sealed files of `kinds` their names, and remove the others. May be called again after it was cut off."""
    publish(prefix, {kind: partial_path(_final(prefix, kind)) for kind in kinds})
    discard_partials(prefix)


def discard_partials(prefix: str) -> None:
    """Remove what an abandoned writer of `prefix` left."""
    for name in ("bin", "lengths", "loss_mask", "idx"):
        partial_path(_final(prefix, name)).unlink(missing_ok=True)


def _final(prefix: str, name: str) -> Path:
    if name == "lengths":
        return Path(f"{prefix}.lengths")  # never published
    return {"bin": bin_path, "idx": idx_path, "loss_mask": loss_mask_path}[name](prefix)
