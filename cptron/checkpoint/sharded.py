"""Model and optimizer as megatron-core `torch_dist` shards, loadable under any layout.

Place in the flow: inside a checkpoint directory (`layout`). Adapter for `megatron.core.dist_checkpointing`.
Invariant: a load fills every parameter asked for or raises; and no code stored in a checkpoint is ever run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.validation import StrictHandling

from cptron.checkpoint.untrusted import refuse_foreign_code, weights_only
from cptron.errors import CheckpointError


def _metadata() -> dict[str, Any]:
    """How state is cut: the optimizer by parameter, so that any later TP, PP and DP can load it.

    A new dict each time, because megatron-core adds the current process groups to it.
    """
    return {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def _model_state(model: Any) -> dict[str, Any]:
    """The model's tensors. Objects (empty `_extra_state` entries) are left out: torch would unpickle them on load."""
    state = model.sharded_state_dict(metadata=_metadata())
    return {name: value for name, value in state.items() if not isinstance(value, ShardedObject)}


def save_shards(shards: Path, model: Any, optimizer: Any | None = None) -> None:
    """Write this rank's part; collective. `model` is the unwrapped module, `shards` exists and is empty."""
    state = {"model": _model_state(model)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(state["model"], metadata=_metadata())
    dist_checkpointing.save(state, str(shards))


def load_shards(shards: Path, model: Any, optimizer: Any | None = None) -> None:
    """Fill the model, and the optimizer where given; collective. Raises `CheckpointError` on anything
    missing."""
    refuse_foreign_code(shards)
    state = {"model": _model_state(model)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(
            state["model"], is_loading=True, metadata=_metadata()
        )
    with weights_only():
        loaded, unused, absent = dist_checkpointing.load(state, str(shards), strict=StrictHandling.RETURN_ALL)
    unused = {key for key in unused if "_extra_state" not in key}
    unused = {key for key in unused if not (optimizer is None and key.startswith("optimizer."))}
    if absent or unused:
        wrong = sorted(absent) or sorted(unused)
        what = "lacks" if absent else "holds parameters this model does not have:"
        raise CheckpointError(
            f"{shards} {what} {', '.join(wrong[:3])} ({len(wrong)} in all); it is of another model"
        )
    unset, _ = model.load_state_dict(loaded["model"], strict=False)
    unset = [name for name in unset if not name.endswith("_extra_state")]
    assert not unset, f"parameters that no shard filled: {unset[:3]}"
    if optimizer is not None:
        optimizer.load_state_dict(loaded["optimizer"])
