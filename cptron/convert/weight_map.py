"""Tensors of one naming to tensors of the other, by the rules of a family.

Place in the flow: used by import and export. Invariant: `to_hugging_face(to_megatron(x)) == x`, bit for bit.

Shapes: H hidden, N query heads, G key/value groups, D head size, F MLP width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from cptron.errors import ConversionError
from cptron.model.architecture import Architecture
from cptron.model.families.family import Family, TensorRule

ReadTensor = Callable[[str], torch.Tensor]


def expected_shapes(rule: TensorRule, arch: Architecture) -> tuple[tuple[int, ...], ...]:
    """Shapes of the rule's Hugging Face tensors, in order; None-free because every tensor of a family is
    known."""
    hidden = arch.hidden_size
    query, group = arch.num_attention_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    if rule.layout == "qkv":
        return (query, hidden), (group, hidden), (group, hidden)
    if rule.layout == "gate_up":
        return (arch.ffn_hidden_size, hidden), (arch.ffn_hidden_size, hidden)
    if rule.layout == "vocab":
        return ((arch.vocab_size, hidden),)
    if "linear_proj" in rule.megatron:
        return ((hidden, query),)
    if "linear_fc2" in rule.megatron:
        return ((hidden, arch.ffn_hidden_size),)
    return ((hidden,),)


def layers_of(rule: TensorRule, arch: Architecture) -> Iterator[int]:
    """Layer numbers a rule stands for; a rule outside the layers stands for one tensor."""
    yield from range(arch.num_layers) if "{layer}" in rule.megatron else range(1)


def hugging_face_names(family: Family, arch: Architecture) -> list[str]:
    """Every Hugging Face tensor of the architecture."""
    return [
        name.format(layer=layer)
        for rule in family.rules_for(arch)
        for layer in layers_of(rule, arch)
        for name in rule.hugging_face
    ]


def to_megatron(
    family: Family, arch: Architecture, read: ReadTensor, padded_vocab: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """megatron-core names and full tensors, read one at a time. Raises `ConversionError` on a wrong shape."""
    for rule in family.rules_for(arch):
        shapes = expected_shapes(rule, arch)
        for layer in layers_of(rule, arch):
            parts = []
            for name, shape in zip(rule.hugging_face, shapes, strict=True):
                tensor = read(name.format(layer=layer))
                if tuple(tensor.shape) != shape:
                    raise ConversionError(
                        f"{name.format(layer=layer)} has shape {list(tensor.shape)}, but config.json implies "
                        f"{list(shape)}; the weights and config.json are not of the same model"
                    )
                parts.append(tensor)
            yield rule.megatron.format(layer=layer), _join(rule, arch, parts, padded_vocab)


def to_hugging_face(
    family: Family, arch: Architecture, read: ReadTensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face names and contiguous tensors, given full megatron-core tensors."""
    for rule in family.rules_for(arch):
        for layer in layers_of(rule, arch):
            parts = _split(rule, arch, read(rule.megatron.format(layer=layer)))
            for name, tensor in zip(rule.hugging_face, parts, strict=True):
                yield name.format(layer=layer), tensor.contiguous()


def _join(rule: TensorRule, arch: Architecture, parts: list[torch.Tensor], padded_vocab: int) -> torch.Tensor:
    if rule.layout == "qkv":
        per_group = [part.view(arch.num_kv_heads, -1, arch.hidden_size) for part in parts]  # [G, rows, H]
        return torch.cat(per_group, dim=1).reshape(-1, arch.hidden_size)
    if rule.layout == "gate_up":
        return torch.cat(parts, dim=0)
    if rule.layout == "vocab":
        return torch.nn.functional.pad(parts[0], (0, 0, 0, padded_vocab - arch.vocab_size))
    return parts[0]


def _split(rule: TensorRule, arch: Architecture, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if rule.layout == "qkv":
        heads_per_group = arch.num_attention_heads // arch.num_kv_heads
        rows = [heads_per_group * arch.head_dim, arch.head_dim, arch.head_dim]
        per_group = tensor.view(arch.num_kv_heads, -1, arch.hidden_size).split(rows, dim=1)
        return tuple(part.reshape(-1, arch.hidden_size) for part in per_group)
    if rule.layout == "gate_up":
        return tensor.chunk(2, dim=0)
    if rule.layout == "vocab":
        return (tensor[: arch.vocab_size],)
    return (tensor,)
