"""What of a model and its optimizer this rank holds, as boxes of the tensors that a checkpoint stores.

Place in the flow: `sharded` writes and reads these. Adapter: reads megatron-core's own description of where a parameter
lies in the whole model, and the ranges that its distributed optimizer divides. Invariant: over all ranks, the parts
that are to be written fill every stored tensor exactly once; no rank needs another's memory to write or read its own.

megatron-core's own `fully_reshardable` state has the same tensors under the same names, but gathers the optimizer of a
data parallel group on every rank first; here each rank keeps to the stretch of each parameter that it updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from cptron.checkpoint.boxes import boxes

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Tensors with a row for each token."""
OPTIMIZER = "optimizer.state."
"""Before the names of all optimizer tensors."""

Holds = Callable[[str], bool]
"""Whether a parameter, by its name in a chunk, is meant."""


def everything(name: str) -> bool:
    """Every parameter."""
    return True


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a stored tensor, and the tensor on this rank with its elements."""

    key: str
    shape: tuple[int, ...]
    """Of the whole stored tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    tensor: torch.Tensor
    """Of `sizes`, or of as many elements."""
    above: int
    """Leading axes that stack layers."""

    @property
    def parameter(self) -> str:
        """Name of the parameter with the layer's number in the whole model."""
        if not self.above:
            return self.key
        return self.key.replace("decoder.layers.", f"decoder.layers.{self.offsets[0]}.", 1)

    @property
    def is_of_vocabulary(self) -> bool:
        """Its rows are tokens; their number depends on the layout."""
        return self.key.endswith(VOCABULARY)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a parameter that is a box of a stored tensor: all of it, or its gate or up rows."""

    sharded: ShardedTensor
    first: int
    """Of its elements in the flattened parameter."""

    @property
    def is_first_copy(self) -> bool:
        """No tensor rank or stage before this one has the same elements."""
        return not any(_replica(self.sharded)[:-1])

    def part(self, prefix: str, offsets: Sequence[int], sizes: Sequence[int], tensor: torch.Tensor) -> Part:
        """The box of this piece that begins at `offsets`, stored under `prefix` and the parameter's key."""
        sharded = self.sharded
        above = sharded.prepend_axis_num
        place = [first + offset for first, offset in zip(sharded.global_offset[above:], offsets, strict=True)]
        return Part(
            prefix + str(sharded.key),
            tuple(sharded.global_shape),
            (*sharded.global_offset[:above], *place),
            ((1,) * above + tuple(sizes)),
            tensor,
            above,
        )

    def whole(self) -> Part:
        """All of it."""
        data = self.sharded.data
        return self.part("", (0,) * data.dim(), data.shape, data)

    def within(self, start: int, stop: int, flat: torch.Tensor, base: int, prefix: str) -> Iterator[Part]:
        """The elements `start` to `stop` of the parameter, as far as they are of this piece; `flat` has those from
        `base` on."""
        begin = max(start - self.first, 0)
        end = min(stop - self.first, self.sharded.data.numel())
        at = self.first + begin - base
        for offsets, sizes in boxes(begin, end, self.sharded.data.shape):
            count = math.prod(sizes)
            yield self.part(prefix, offsets, sizes, flat[at : at + count])
            at += count


class Parts:
    """The parts of `chunks` (unwrapped modules) that `holds` says, and of their optimizer where given."""

    def __init__(
        self, chunks: Sequence[Any], optimizer: Any | None = None, holds: Holds = everything
    ) -> None:
        self.model_state = model_state(chunks, holds)
        self._pieces: dict[torch.Tensor, list[_Piece]] = {}
        self._plain: dict[torch.Tensor, torch.Tensor] = {}
        for state in self.model_state.values():
            for value in state.values():
                self._add(value)
        self._optimizers = [] if optimizer is None else list(optimizer.chained_optimizers)

    def _add(self, value: ShardedTensor | ShardedTensorFactory) -> None:
        param = value.data
        plain = param.dequantize() if hasattr(param, "dequantize") and is_quantised(param) else param.detach()
        self._plain[param] = plain
        if isinstance(value, ShardedTensorFactory):  # gate and up rows, which are stored apart
            pieces = replace(value, data=plain).build()
        else:
            pieces = [replace(value, data=plain, dtype=plain.dtype)]
        self._pieces[param] = [_Piece(piece, _distance(piece.data, plain)) for piece in pieces]

    def of_model(self) -> Iterator[Part]:
        """All of this rank's parameters, whichever ranks have them too."""
        for pieces in self._pieces.values():
            for piece in pieces:
                yield piece.whole()

    def of_optimizer(self) -> Iterator[Part]:
        """All optimizer state of this rank, whichever ranks have it too."""
        for piece, start, stop, name, tensor in self._states():
            yield from piece.within(start, stop, tensor, start, f"{OPTIMIZER}{name}.")
        for piece in self._undivided(is_loading=True):
            yield piece.whole()

    def to_write(self) -> Iterator[Part]:
        """What this rank writes: of trained parameters the stretches that it updates, and their state; of others, which
        all data parallel ranks have, what the first of them has."""
        owned = dict(self._owned())
        divided = {id(p) for part in self._sharded() for buffer in part.buffers for p in buffer.params}
        for param, pieces in self._pieces.items():
            for piece in pieces:
                if not piece.is_first_copy:
                    continue
                if param in owned:
                    flat = self._plain[param].view(-1)
                    yield from piece.within(*owned[param], flat, 0, "")
                elif id(param) not in divided and _replica(piece.sharded)[-1] == 0:
                    yield piece.whole()
        for piece, start, stop, name, tensor in self._states():
            if piece.is_first_copy:
                yield from piece.within(start, stop, tensor, start, f"{OPTIMIZER}{name}.")
        for piece in self._undivided(is_loading=False):
            if not any(_replica(piece.sharded)):
                yield piece.whole()

    def boxes_of(
        self, param: torch.Tensor, start: int, stop: int, flat: torch.Tensor, prefix: str = ""
    ) -> Iterator[Part]:
        """The elements `start` to `stop` of a parameter as boxes of what is stored of it under `prefix` and its key;
        `flat` has them, or anything else of which there is one for each."""
        for piece in self._pieces[param]:
            yield from piece.within(start, stop, flat, start, prefix)

    def is_first_copy(self, param: torch.Tensor) -> bool:
        """No tensor rank or stage before this one has the same parameter."""
        return all(piece.is_first_copy for piece in self._pieces[param])

    def put_back(self) -> None:
        """Take over what was read into parameters that are kept in another form than they are stored in."""
        for param, plain in self._plain.items():
            if plain.data_ptr() != param.data_ptr():
                param.data.copy_(plain)

    def _sharded(self) -> Iterator[DistributedOptimizer]:
        for part in self._optimizers:
            if isinstance(part, DistributedOptimizer):
                yield part

    def _owned(self) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
        """Parameters of which this rank updates a stretch, and the stretch."""
        for part in self._sharded():
            for param in part.model_param_group_index_map:
                stretch = part._get_model_param_range_map(param)["param"]
                yield param, (stretch.start, stretch.end)

    def _undivided(self, is_loading: bool) -> Iterator[_Piece]:
        """State of optimizers that every data parallel rank has whole, as megatron-core describes it: the very tensors
        that the optimizer works with."""
        only = self.model_state["model"] if len(self.model_state) == 1 else self.model_state
        for part in self._optimizers:
            if not isinstance(part, DistributedOptimizer):
                state = part.sharded_state_dict(only, is_loading=is_loading, metadata=metadata())
                for value in nested_values(state):
                    if isinstance(value, ShardedTensorFactory):
                        yield from (_Piece(piece, 0) for piece in value.build())
                    elif isinstance(value, ShardedTensor):
                        yield _Piece(value, 0)

    def _states(self) -> Iterator[tuple[_Piece, int, int, str, torch.Tensor]]:
        """Piece of a parameter, the stretch of it, and name and elements of its state."""
        for part in self._sharded():
            for param in part.model_param_group_index_map:
                stretch = part._get_model_param_range_map(param)["param"]
                for name, tensor in part._get_main_param_and_optimizer_states(param).items():
                    if torch.is_tensor(tensor) and tensor.numel() == stretch.size:
                        for piece in self._pieces[param]:
                            yield piece, stretch.start, stretch.end, name, tensor.detach()


def model_state(chunks: Sequence[Any], holds: Holds) -> dict[str, dict[str, Any]]:
    """Each chunk's tensors as megatron-core describes them, by what it calls the chunk. Objects (empty `_extra_state`
    entries) are left out."""
    names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
    states = [chunk.sharded_state_dict(metadata=metadata()) for chunk in chunks]
    return {
        name: {
            key: value for key, value in state.items() if holds(key) and not isinstance(value, ShardedObject)
        }
        for name, state in zip(names, states, strict=True)
    }


def metadata() -> dict[str, Any]:
    """How megatron-core is to describe state. A new dict each time, because it adds the current process groups."""
    return {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def is_quantised(param: torch.Tensor) -> bool:
    """Kept in FP8 by Transformer Engine, whose tensors are of a class of their own."""
    return type(param).__module__.startswith("transformer_engine")


def _replica(sharded: ShardedTensor) -> tuple[int, ...]:
    """Which copy this is, by tensor rank or stage, and last by data parallel rank."""
    found = sharded.replica_id
    return found if isinstance(found, tuple) else (found,)


def _distance(view: torch.Tensor, whole: torch.Tensor) -> int:
    """Elements of `whole` before those of its part `view`, which is contiguous as `whole` is."""
    assert view.is_contiguous() and whole.is_contiguous(), "parameters are stored as they lie in memory"
    distance = (view.data_ptr() - whole.data_ptr()) // whole.element_size()
    assert 0 <= distance <= whole.numel() - view.numel(), "a piece of a parameter is a view of it"
    return distance
