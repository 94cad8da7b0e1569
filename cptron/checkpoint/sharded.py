"""Model and optimizer as megatron-core `torch_dist` shards, loadable under any layout.

Place in the flow: inside a checkpoint directory (`layout`). Adapter for `megatron.core.dist_checkpointing`.
Invariant: a load fills every parameter asked for or raises; and no code stored in a checkpoint is ever run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.dist_checkpointing.validation import StrictHandling

from cptron.checkpoint.checksum import Checksums, as_text, checksum
from cptron.checkpoint.untrusted import read_index, weights_only
from cptron.errors import CheckpointError
from cptron.runtime.dist import agree

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Tensors with a row for each token."""

Holds = Callable[[str], bool]
"""Whether a parameter, by its name in a chunk, is meant."""


def everything(name: str) -> bool:
    """Every parameter."""
    return True


def _metadata() -> dict[str, Any]:
    """How state is cut: the optimizer by parameter, so that any later TP, PP and DP can load it.

    A new dict each time, because megatron-core adds the current process groups to it.
    """
    return {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def _model_state(chunks: Sequence[Any], holds: Holds) -> dict[str, dict[str, Any]]:
    """Each chunk's tensors, by what megatron-core calls the chunk. Objects (empty `_extra_state` entries) are left
    out: torch would unpickle them on load."""
    names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
    states = [chunk.sharded_state_dict(metadata=_metadata()) for chunk in chunks]
    return {
        name: {
            key: value for key, value in state.items() if holds(key) and not isinstance(value, ShardedObject)
        }
        for name, state in zip(names, states, strict=True)
    }


def _optimizer_state(optimizer: Any, model_state: dict[str, dict[str, Any]], *, is_loading: bool) -> Any:
    only = model_state["model"] if len(model_state) == 1 else model_state
    return optimizer.sharded_state_dict(only, is_loading=is_loading, metadata=_metadata())


def weight_checksums(
    chunks: Sequence[Any], vocab_size: int, dtype: torch.dtype | None = None, *, holds: Holds = everything
) -> Checksums:
    """Checksum of every parameter that `holds` says, over all ranks; collective. With `dtype` of the weights rounded
    to it. Padding rows of the vocabulary do not count, since their number depends on the layout."""
    own: dict[str, int] = {}
    for state in _model_state(chunks, holds).values():
        for part in _sharded_tensors(state):
            if is_main_replica(part.replica_id):
                name, value = _part_checksum(part, vocab_size, dtype)
                own[name] = own.get(name, 0) + value
    by_rank: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, own)
    total: dict[str, int] = {}
    for sums in by_rank:
        for name, value in sums.items():
            total[name] = total.get(name, 0) + value
    return as_text(total)


def _sharded_tensors(state: dict[str, Any]) -> Iterator[ShardedTensor]:
    for value in state.values():
        if isinstance(value, ShardedTensorFactory):  # gate and up rows, which are stored apart
            yield from value.build()
        else:
            yield value


def _part_checksum(part: ShardedTensor, vocab_size: int, dtype: torch.dtype | None) -> tuple[str, int]:
    """Stored name, and checksum of a rank's part of the tensor."""
    key, above = str(part.key), part.prepend_axis_num
    first_row, *first_column = part.global_offset[above:]
    data = part.data if dtype is None else part.data.to(dtype)
    if key in VOCABULARY:
        data = data[: max(vocab_size - first_row, 0)]
    name = key.replace("decoder.layers.", f"decoder.layers.{part.global_offset[0]}.", 1) if above else key
    return name, checksum(data, first_row, *first_column) if len(data) else 0


def save_shards(
    shards: Path, chunks: Sequence[Any], optimizer: Any | None = None, *, holds: Holds = everything
) -> None:
    """Write this rank's part of the parameters that `holds` says; collective. `chunks` are unwrapped modules,
    `shards` exists and is empty."""
    model_state = _model_state(chunks, holds)
    state: dict[str, Any] = dict(model_state)
    if optimizer is not None:
        state["optimizer"] = _optimizer_state(optimizer, model_state, is_loading=False)
    dist_checkpointing.save(state, str(shards))


def load_shards(
    shards: Path, chunks: Sequence[Any], optimizer: Any | None = None, *, holds: Holds = everything
) -> None:
    """Fill the parameters that `holds` says, and the optimizer where given; collective. Raises `CheckpointError`
    on anything missing."""
    agree(lambda: read_index(shards))
    model_state = _model_state(chunks, holds)
    state: dict[str, Any] = dict(model_state)
    if optimizer is not None:
        state["optimizer"] = _optimizer_state(optimizer, model_state, is_loading=True)
    try:
        with weights_only():
            loaded, unused, absent = dist_checkpointing.load(
                state, str(shards), strict=StrictHandling.RETURN_ALL
            )
    except ValueError as error:
        raise _of_another_optimizer(shards, error) from None
    unused = {key for key in unused if "_extra_state" not in key}
    unused = {key for key in unused if not (optimizer is None and key.startswith("optimizer."))}
    if absent or unused:
        wrong = sorted(absent) or sorted(unused)
        what = "lacks" if absent else "holds parameters this model does not have:"
        of_optimizer = all(key.startswith("optimizer.") for key in wrong)
        advice = (
            "keep the optimizer and what is trained as they were"
            if of_optimizer
            else "it is of another model"
        )
        raise CheckpointError(f"{shards} {what} {', '.join(wrong[:3])} ({len(wrong)} in all); {advice}")
    for name, chunk in zip(model_state, chunks, strict=True):
        unset, _ = chunk.load_state_dict(loaded[name], strict=False)
        unset = [key for key in unset if holds(key) and not key.endswith("_extra_state")]
        assert not unset, f"parameters that no shard filled: {unset[:3]}"
    if optimizer is not None:
        try:
            optimizer.load_state_dict(loaded["optimizer"])
        except ValueError as error:
            raise _of_another_optimizer(shards, error) from None


def _of_another_optimizer(shards: Path, error: ValueError) -> CheckpointError:
    """megatron-core's word for an optimizer with other state, or other groups, than the one asked for."""
    reason = str(error).splitlines()[0][:200]
    return CheckpointError(
        f"{shards} cannot be loaded by this run ({reason}); keep the optimizer, its groups and what is trained as they "
        "were"
    )
