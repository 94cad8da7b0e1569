"""A model's adapters as a whole: what is frozen, where they start, what they are called.

Place in the flow: after `build_chunks` with an adapter and before the optimizer: `init_adapters` and `freeze_base`;
after the base's weights are loaded: `init_magnitudes`. Invariant: names, and the values that training starts from,
do not depend on how the model is cut over ranks.

Shapes: R rank of the adapter, I inputs of a projection, here on this rank and in all of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cptron.model.adapter_layers import AdaptedLinear, Projection


def is_adapter(name: str) -> bool:
    """The parameter, or the tensor of a checkpoint, belongs to an adapter and not to the base model."""
    return ".adapter." in name


def is_base(name: str) -> bool:
    """The parameter, or the tensor of a checkpoint, belongs to the base model."""
    return not is_adapter(name)


def freeze_base(chunks: Sequence[Any]) -> None:
    """Only adapters are trained. To be called before gradient buffers and optimizer are made."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad_(is_adapter(name))


def adapter_parameters(chunks: Sequence[Any]) -> dict[str, torch.nn.Parameter]:
    """This rank's adapter parameters by name, with the layer's number in the whole model."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, projection in _projections(chunks)
        for name, parameter in projection.named_parameters()
    }


@torch.no_grad()
def init_adapters(chunks: Sequence[Any], seed: int) -> None:
    """Start where PEFT starts: A uniform (kaiming with a = sqrt 5), B zero, so that the adapted model is the base.

    Magnitudes of DoRA need the base's weights; `init_magnitudes` sets them.
    """
    for prefix, projection in _projections(chunks):
        projection.lora_A.copy_(_whole_A_part(projection, seed, f"{prefix}.lora_A"))
        projection.lora_B.zero_()


@torch.no_grad()
def init_magnitudes(chunks: Sequence[Any]) -> None:
    """Set DoRA's magnitudes to the row norms of base and adapter together, which changes nothing that the model
    computes; nothing to do for LoRA. Collective. An optimizer with master weights must reload them afterwards."""
    for chunk in chunks:
        for linear in chunk.modules():
            if not isinstance(linear, AdaptedLinear):
                continue
            weights = linear.adapter.split_weight(linear.weight)
            for name, projection in linear.adapter.projections().items():
                if projection.magnitude is not None:
                    projection.magnitude.copy_(projection.row_norms(weights[name]))


def _projections(chunks: Sequence[Any]) -> Iterator[tuple[str, Projection]]:
    """(global name, adapter) of every projection on this rank; chunks may be wrapped for data parallelism."""
    for chunk in chunks:
        while hasattr(chunk, "module"):
            chunk = chunk.module
        for layer in chunk.decoder.layers:
            for name, module in layer.named_modules():
                if isinstance(module, Projection):
                    yield f"decoder.layers.{layer.layer_number - 1}.{name}", module


def _whole_A_part(projection: Projection, seed: int, name: str) -> torch.Tensor:
    """This rank's columns of the matrix `[R, I]` that a single process would draw."""
    rank, inputs = projection.lora_A.shape
    size, number = 1, 0
    if projection.row_parallel and projection.tp_group is not None:
        size, number = projection.tp_group.size(), projection.tp_group.rank()
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = 1 / math.sqrt(inputs * size)
    whole_RI = torch.empty(rank, inputs * size).uniform_(-bound, bound, generator=generator)
    return whole_RI[:, number * inputs : (number + 1) * inputs]
