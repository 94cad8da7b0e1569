"""Completes token files: writes their index and gives them the names under which they are found.

Place in the flow: both writers end with it, `indexed_writer` of new documents and `sequence_writer` of copied ones.
Invariant: a `.idx` has its name only after the `.bin` it describes; a stop in between leaves nothing that looks whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cptron.durable import fsync_path
from cptron.errors import DataError
from cptron.tokens.index_layout import (
    CHUNK,
    CODE_OF_DTYPE,
    HEADER,
    MAGIC,
    VERSION,
    bin_path,
    idx_path,
    loss_mask_path,
)
from cptron.tokens.manifest import manifest_path
from cptron.tokens.partial_file import PartialFile


def write_index(
    idx: PartialFile,
    lengths: PartialFile,
    dtype: np.dtype[Any],
    num_documents: int,
    document_ends: Iterable[bytes],
) -> None:
    """Write an `.idx`: `lengths` holds the tokens of each sequence as i32, `document_ends` the number of sequences up
    to the end of each document as i64."""
    code, num_sequences = CODE_OF_DTYPE[dtype.name], lengths.num_bytes // 4
    idx.write(HEADER.pack(MAGIC, VERSION, code, num_sequences, num_documents + 1))
    for piece in lengths.read_back():
        idx.write(piece)
    num_bytes = 0
    for piece in lengths.read_back(4 * CHUNK):
        sizes = np.frombuffer(piece, "<i4").astype(np.int64) * dtype.itemsize
        ends = num_bytes + np.cumsum(sizes)
        idx.write((ends - sizes).astype("<i8").tobytes())
        num_bytes = int(ends[-1])
    idx.write(bytes(8))
    for piece in document_ends:
        idx.write(piece)


def publish(prefix: str, made: Mapping[str, Path]) -> None:
    """Give the durable files of `made` (bin, idx, loss_mask) their names, in place of older ones; a manifest is for
    the caller to write. May be called again after it was cut off."""
    if made["bin"].exists():
        for old in (manifest_path(prefix), idx_path(prefix), loss_mask_path(prefix)):
            old.unlink(missing_ok=True)
    for kind, final in (("bin", bin_path), ("loss_mask", loss_mask_path), ("idx", idx_path)):
        if kind in made and made[kind].exists():
            made[kind].replace(final(prefix))
    fsync_path(bin_path(prefix).parent)


def refuse_existing(prefixes: Iterable[str], *others: Path) -> None:
    """Raise DataError when a file of one of `prefixes`, or one of `others`, is there."""
    kinds = (bin_path, idx_path, loss_mask_path, manifest_path)
    for path in [*(kind(prefix) for prefix in prefixes for kind in kinds), *others]:
        if path.exists():
            raise DataError(f"{path} exists and must not be lost; use --overwrite or another --output-prefix")
