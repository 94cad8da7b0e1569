"""Model and optimizer as megatron-core `torch_dist` shards, loadable under any layout.

Place in the flow: inside a checkpoint directory (`layout`). Adapter for `megatron.core.dist_checkpointing`.
Invariant: a load fills every parameter asked for or raises; and no code stored in a checkpoint is ever run.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling

from cptron.errors import CheckpointError

_SAFE_MODULES = ("torch.distributed.checkpoint.", "megatron.core.dist_checkpointing.")
_SAFE_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch._utils", "_rebuild_device_mesh"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("builtins", "tuple"),
    ("builtins", "getattr"),
}


class _DataOnlyUnpickler(pickle.Unpickler):
    """Reads torch's checkpoint metadata and refuses every name that is not plain data."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and name in (
            "float32",
            "bfloat16",
            "float16",
            "int64",
            "int32",
            "uint8",
            "float64",
        )
        if module.startswith(_SAFE_MODULES) or (module, name) in _SAFE_NAMES or is_dtype:
            return super().find_class(module, name)
        raise CheckpointError(
            f"checkpoint metadata refers to {module}.{name}, which may run code; not loading it"
        )


def refuse_foreign_code(shards: Path) -> None:
    """Raise `CheckpointError` unless the shards' pickled metadata holds plain data only.

    torch stores the index of a distributed checkpoint as a pickle (`.metadata`); the tensors themselves are
    read with `weights_only`.
    """
    path = shards / ".metadata"
    try:
        _DataOnlyUnpickler(io.BytesIO(path.read_bytes())).load()
    except CheckpointError:
        raise
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from None


def _metadata() -> dict[str, Any]:
    """How state is cut: the optimizer by parameter, so that any later TP, PP and DP can load it.

    A new dict each time, because megatron-core adds the current process groups to it.
    """
    return {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def save_shards(shards: Path, model: Any, optimizer: Any | None = None) -> None:
    """Write this rank's part; collective. `model` is the unwrapped module, `shards` exists and is empty."""
    state = {"model": model.sharded_state_dict(metadata=_metadata())}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(state["model"], metadata=_metadata())
    dist_checkpointing.save(state, str(shards))


def load_shards(shards: Path, model: Any, optimizer: Any | None = None) -> None:
    """Fill the model, and the optimizer where given; collective. Raises `CheckpointError` on anything
    missing."""
    refuse_foreign_code(shards)
    state = {"model": model.sharded_state_dict(metadata=_metadata())}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(
            state["model"], is_loading=True, metadata=_metadata()
        )
    loaded, unused, absent = dist_checkpointing.load(state, str(shards), strict=StrictHandling.RETURN_ALL)
    unused = {key for key in unused if not (optimizer is None and key.startswith("optimizer."))}
    if absent or unused:
        wrong = sorted(absent) or sorted(unused)
        what = "lacks" if absent else "holds parameters this model does not have:"
        raise CheckpointError(
            f"{shards} {what} {', '.join(wrong[:3])} ({len(wrong)} in all); it is of another model"
        )
    model.load_state_dict(loaded["model"], strict=True)
    if optimizer is not None:
        optimizer.load_state_dict(loaded["optimizer"])
