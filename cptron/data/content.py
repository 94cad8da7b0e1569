"""Opens token files and says what their content is, in no time however large they are.

Place in the flow: token files -> `source` and `valid`. Invariant: the identity changes when the tokens or
the borders of documents change, and with nothing else: not with the path, the machine or the time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cptron.errors import DataError
from cptron.tokens.index_layout import bin_path, idx_path, loss_mask_path
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import Manifest, load_manifest, manifest_path

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True, slots=True)
class Content:
    """Token files, open, with their identity."""

    tokens: IndexedTokens
    manifest: Manifest | None
    """None for files that another tool made: then their tokenizer is not known."""
    identity: str
    """SHA-256, in hex; from the hashes of the manifest, or from sizes and samples of both files."""


def open_content(prefix: str) -> Content:
    """Open `PREFIX.bin` and `PREFIX.idx`. Raises DataError when they are missing, damaged or unlike their
    manifest.

    Files with a manifest are not scanned: their counts are in it. Files without one are scanned once here.
    """
    if not manifest_path(prefix).is_file():
        if loss_mask_path(prefix).exists():
            raise DataError(
                f"{loss_mask_path(prefix)} has no manifest beside it that says what it belongs to; make the files "
                "again, or remove it to learn all tokens"
            )
        return Content(IndexedTokens(prefix), None, _sampled_identity(prefix))
    manifest = load_manifest(prefix)
    files = manifest.files
    identity = hashlib.sha256(f"{files['bin'].sha256}|{files['idx'].sha256}".encode()).hexdigest()
    return Content(IndexedTokens.recorded(prefix, manifest.documents, manifest.tokens), manifest, identity)


def _sampled_identity(prefix: str) -> str:
    """Hash of the sizes, and of pieces spread evenly over both files."""
    digest = hashlib.sha256(b"sampled")
    for path in (bin_path(prefix), idx_path(prefix)):
        digest.update(_sampled(path))
    return digest.hexdigest()


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as stream:
        for start in np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLES).astype(np.int64).tolist():
            stream.seek(start)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.digest()
