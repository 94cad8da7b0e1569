"""Tensors of one naming to tensors of the other, by the rules of a family; whole, or one tensor parallel rank's part.

Place in the flow: used by import, export and the direct start from a Hugging Face model. Invariant:
`to_hugging_face(to_megatron(x)) == x`, bit for bit, and the parts of all ranks together are the whole.

Shapes: H hidden, N query heads, G key/value groups, D head size, F MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families.family import Family, TensorRule, size_of

ReadTensor = Callable[[str], torch.Tensor]
"""A whole tensor by name."""
ReadRange = Callable[[str, int, int, int], torch.Tensor]
"""Of the tensor of a name, along a dimension, the entries from a first one to an end: `read(name, dim, start, end)`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which of `size` equal parts of every tensor that is cut."""

    rank: int = 0
    size: int = 1

    def of(self, length: int) -> tuple[int, int]:
        """(first, end) of this part of `length` entries."""
        assert length % self.size == 0, "checked with the layout"
        each = length // self.size
        return self.rank * each, (self.rank + 1) * each


WHOLE = Part()


def expected_shapes(rule: TensorRule, arch: Architecture) -> tuple[tuple[int, ...], ...]:
    """Shapes of the rule's Hugging Face tensors, in order."""
    return tuple(tuple(size_of(dim, arch) for dim in shape) for shape in rule.shapes)


def megatron_shape(rule: TensorRule, arch: Architecture, padded_vocab: int) -> tuple[int, ...]:
    """Shape of the rule's whole megatron-core tensor."""
    shapes = expected_shapes(rule, arch)
    rows = padded_vocab if rule.layout == "vocab" else sum(shape[0] for shape in shapes)
    return (rows, *shapes[0][1:])


def layers_of(rule: TensorRule, arch: Architecture) -> range:
    """Layer numbers a rule stands for; a rule outside the layers stands for one tensor."""
    return range(arch.num_layers) if "{layer}" in rule.megatron else range(1)


def layer_by_layer(family: Family, arch: Architecture) -> list[tuple[TensorRule, int]]:
    """Every parameter, as rule and layer: embedding, layers, the rest; the order in which most models are stored."""
    rules = family.rules_for(arch)
    inside = [rule for rule in rules if "{layer}" in rule.megatron]
    first, *rest = [(rule, 0) for rule in rules if "{layer}" not in rule.megatron]
    return [first, *((rule, layer) for layer in range(arch.num_layers) for rule in inside), *rest]


def hugging_face_shapes(family: Family, arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor of the architecture, in the order of the rules, and its shape."""
    return {
        name.format(layer=layer): shape
        for rule in family.rules_for(arch)
        for layer in layers_of(rule, arch)
        for name, shape in zip(rule.hugging_face, expected_shapes(rule, arch), strict=True)
    }


def hugging_face_names(family: Family, arch: Architecture) -> list[str]:
    """Every Hugging Face tensor of the architecture."""
    return list(hugging_face_shapes(family, arch))


def read_part(
    rule: TensorRule, arch: Architecture, layer: int, read: ReadRange, padded_vocab: int, part: Part = WHOLE
) -> torch.Tensor:
    """The part of a rule's megatron-core tensor, made of no more of the Hugging Face tensors than it needs.

    The shapes of these are taken for granted; `check_shapes` proves them.
    """
    names = [name.format(layer=layer) for name in rule.hugging_face]
    if rule.layout in ("qkv", "fused_qkv"):
        return _read_qkv(rule, arch, names, read, part)
    if rule.layout == "vocab":
        start, end = part.of(padded_vocab)
        real = max(min(end, arch.vocab_size), start)
        rows = read(names[0], 0, min(start, arch.vocab_size), min(real, arch.vocab_size))
        return torch.nn.functional.pad(rows, (0, 0, 0, end - start - len(rows)))
    if rule.layout == "gate_up":
        start, end = part.of(arch.ffn_hidden_size)
        if len(names) == 1:
            up = arch.ffn_hidden_size
            halves = [read(names[0], 0, start, end), read(names[0], 0, up + start, up + end)]
        else:
            halves = [read(name, 0, start, end) for name in names]
        return torch.cat(halves)
    shape = expected_shapes(rule, arch)[0]
    if rule.cut is None:
        return read(names[0], 0, 0, shape[0])
    return read(names[0], rule.cut, *part.of(shape[rule.cut]))


def _read_qkv(
    rule: TensorRule, arch: Architecture, names: list[str], read: ReadRange, part: Part
) -> torch.Tensor:
    first, end = part.of(arch.num_kv_heads)
    per_group = arch.num_attention_heads // arch.num_kv_heads * arch.head_dim
    sizes = (per_group, arch.head_dim, arch.head_dim)
    starts, offset = [], 0
    for size in sizes:  # where queries, keys and values begin in a tensor that has all three
        starts.append(offset if rule.layout == "fused_qkv" else 0)
        offset += size * arch.num_kv_heads
    names = names * 3 if rule.layout == "fused_qkv" else names
    parts = []
    for name, start, size in zip(names, starts, sizes, strict=True):
        rows = read(name, 0, start + first * size, start + end * size)
        parts.append(rows.unflatten(0, (end - first, size)))
    return torch.cat(parts, dim=1).flatten(0, 1)


def to_megatron(
    family: Family, arch: Architecture, read: ReadTensor, padded_vocab: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """megatron-core names and whole tensors, one at a time. Raises `ConversionError` on a wrong shape."""
    for rule in family.rules_for(arch):
        for layer in layers_of(rule, arch):
            names = [name.format(layer=layer) for name in rule.hugging_face]
            tensors = {name: read(name) for name in names}
            check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, rule, arch, layer)

            def narrow(
                name: str, dim: int, start: int, end: int, tensors: dict[str, torch.Tensor] = tensors
            ) -> torch.Tensor:
                return tensors[name].narrow(dim, start, end - start)

            yield rule.megatron.format(layer=layer), read_part(rule, arch, layer, narrow, padded_vocab)


def check_shapes(found: dict[str, tuple[int, ...]], rule: TensorRule, arch: Architecture, layer: int) -> None:
    """Raise `ConversionError` unless the rule's Hugging Face tensors have the shapes that the config implies."""
    for name, shape in zip(rule.hugging_face, expected_shapes(rule, arch), strict=True):
        name = name.format(layer=layer)
        if found[name] != shape:
            raise ConversionError(
                f"{name} has shape {list(found[name])}, but config.json implies {list(shape)}; "
                "the weights and config.json are not of the same model"
            )


def to_hugging_face(
    family: Family, arch: Architecture, read: ReadTensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face names and contiguous tensors, given whole megatron-core tensors."""
    for rule in family.rules_for(arch):
        for layer in layers_of(rule, arch):
            yield from split(rule, arch, layer, read(rule.megatron.format(layer=layer)))


def split(
    rule: TensorRule, arch: Architecture, layer: int, tensor: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face names and contiguous tensors of one whole megatron-core tensor."""
    for name, part in zip(rule.hugging_face, _split(rule, arch, tensor), strict=True):
        yield name.format(layer=layer), part.contiguous()


def _split(rule: TensorRule, arch: Architecture, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if rule.layout in ("qkv", "fused_qkv"):
        per_group = arch.num_attention_heads // arch.num_kv_heads * arch.head_dim
        groups = tensor.unflatten(0, (arch.num_kv_heads, -1))
        parts = [x.flatten(0, 1) for x in groups.split([per_group, arch.head_dim, arch.head_dim], dim=1)]
        return tuple(parts) if rule.layout == "qkv" else (torch.cat(parts),)
    if rule.layout == "gate_up" and len(rule.hugging_face) == 2:
        return tensor.chunk(2, dim=0)
    if rule.layout == "vocab":
        return (tensor[: arch.vocab_size],)
    return (tensor,)
