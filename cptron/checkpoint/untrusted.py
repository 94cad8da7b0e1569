"""Reads the pickled index of a distributed checkpoint without running anything.

Place in the flow: before torch sees a checkpoint. torch stores the index (`.metadata`) as a pickle and
reads it as one; the tensors and the common state are read with `weights_only`. Invariant: only the names
below are looked up, each by its full name; and none of them makes torch unpickle objects from the shards.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from cptron.errors import CheckpointError

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_METADATA = (
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
"""Every name that an index of tensors needs. `BytesStorageMetadata` is not among them on purpose: it
announces objects that torch would unpickle without restriction."""


class _DataOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in DATA_ONLY:
            raise CheckpointError(
                f"checkpoint index refers to {module}.{name}, which may run code; it is not loaded"
            )
        return super().find_class(module, name)


def refuse_foreign_code(shards: Path) -> None:
    """Raise `CheckpointError` unless the index in `shards` holds plain data about tensors only."""
    path = shards / ".metadata"
    try:
        _DataOnlyUnpickler(io.BytesIO(path.read_bytes())).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"{path} cannot be read ({error!r}); use another checkpoint") from None
