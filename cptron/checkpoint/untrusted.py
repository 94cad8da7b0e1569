"""Reads torch's index of a distributed checkpoint without running anything that is stored in it.

Place in the flow: for checkpoints of others, whose index (`.metadata`) torch stores as a pickle and reads as one; ours
have an index in JSON. Invariant: only the names below are looked up, each by its full name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from cptron.checkpoint.pickle_scan import require_bounded
from cptron.errors import CheckpointError

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_METADATA = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_PLANNER = ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
DATA_ONLY = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # the same under Python 3.13
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch", name) for name in _DTYPES),
    *(("torch.distributed.checkpoint.metadata", name) for name in _METADATA),
    *(("torch.distributed.checkpoint.planner", name) for name in _PLANNER),
}
"""Every name that an index of tensors and plain objects needs."""


class _DataOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in DATA_ONLY:
            raise CheckpointError(
                f"checkpoint index refers to {module}.{name}, which may run code; it is not loaded"
            )
        return super().find_class(module, name)


def read_index(shards: Path) -> Any:
    """The index in `shards`. Raises `CheckpointError` unless it holds plain data about tensors only."""
    path = shards / ".metadata"
    try:
        content = path.read_bytes()
        require_bounded(content)
        return _DataOnlyUnpickler(io.BytesIO(content)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"{path} cannot be read ({error!r:.200}); use another checkpoint") from None


def require_stored(archive: Path | IO[bytes]) -> None:
    """Raise ValueError where a zip archive, as torch saves tensors in, has packed members: torch packs none, and reads
    into memory whatever they become."""
    with archive.open("rb") if isinstance(archive, Path) else nullcontext(archive) as stream:
        if not zipfile.is_zipfile(stream):
            return
        with zipfile.ZipFile(stream) as members:
            for member in members.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > member.compress_size:
                    raise ValueError(f"its member {member.filename!r:.80} is packed")
