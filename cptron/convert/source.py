"""Weights under Hugging Face names, wherever they are: a model directory, or shards of a checkpoint.

Place in the flow: what import, export, the probe and verification read from, so that each of them takes either.
Invariant: a source gives every tensor of its architecture, with the same bits whichever way it is stored.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch

from cptron.checkpoint.checksum import Checksums, as_text, checksum
from cptron.checkpoint.names import stored_key, stored_name
from cptron.checkpoint.reader import Reader
from cptron.convert.weight_map import expected_shapes, hugging_face_shapes, layers_of, split
from cptron.errors import CheckpointError
from cptron.model.architecture import Architecture
from cptron.model.families.family import Family, TensorRule

PREFIXES = ("", "module.", "model.")
"""What stands before the names of a model in shards, by who wrote them."""


class WeightSource(Protocol):
    """Tensors by Hugging Face name. Safe for threads."""

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor."""

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        """Entries `start` to `end` along `dim`."""


class ShardSource:
    """The model in `torch_dist` shards, of any layout. Raises `CheckpointError` unless they hold all of it."""

    def __init__(
        self, reader: Reader, family: Family, arch: Architecture, checksums: Checksums | None = None
    ) -> None:
        self.reader, self.family, self.arch = reader, family, arch
        self._checksums = checksums or {}
        self._rules: dict[str, tuple[TensorRule, int]] = {
            name.format(layer=layer): (rule, layer)
            for rule in family.rules_for(arch)
            for layer in layers_of(rule, arch)
            for name in rule.hugging_face
        }
        self._shapes = hugging_face_shapes(family, arch)
        self._prefix = self._find_prefix()
        self._last = threading.local()
        self._check()

    def _find_prefix(self) -> str:
        for prefix in PREFIXES:
            if any(key.startswith((f"{prefix}decoder.", f"{prefix}embedding.")) for key in self.reader.keys):
                return prefix
        raise CheckpointError(
            f"{self.reader.directory} holds no GPT model of megatron-core (no key begins with decoder. or embedding.)"
        )

    def _check(self) -> None:
        """Every parameter is there with its shape; rows of the vocabulary may be padded."""
        for rule, layer in dict.fromkeys(self._rules.values()):
            shape = self.megatron_shape(rule, layer)
            rows = sum(part[0] for part in expected_shapes(rule, self.arch))
            wanted = (rows, *expected_shapes(rule, self.arch)[0][1:])
            fits = shape[1:] == wanted[1:] and (
                shape[0] >= rows if rule.layout == "vocab" else shape[0] == rows
            )
            if not fits:
                raise CheckpointError(
                    f"{self.reader.directory} has {rule.megatron.format(layer=layer)} of shape {list(shape)}, but the "
                    f"configuration implies {list(wanted)}; they are not of the same model"
                )

    @property
    def names(self) -> set[str]:
        """Every tensor."""
        return set(self._rules)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Type in which a tensor is stored."""
        rule, layer = self._rules[name]
        return self.reader.dtype(self._stored(rule, layer)[0][0])

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        return self._of_its_rule(name).pop(name)

    def _of_its_rule(self, name: str) -> dict[str, torch.Tensor]:
        """The tensor and its neighbours: those of one rule are asked for one after the other, and in parts."""
        if name not in getattr(self._last, "tensors", {}):
            self._last.tensors = {}  # before others are read
            rule, layer = self._rules[name]
            self._last.tensors = dict(split(rule, self.arch, layer, self.megatron(rule, layer)))
        found: dict[str, torch.Tensor] = self._last.tensors
        return found

    def read_range(self, name: str, dim: int, start: int, end: int) -> torch.Tensor:
        """Entries `start` to `end` along `dim`; of the vocabulary, rows are read alone."""
        rule, layer = self._rules[name]
        if rule.layout == "vocab" and dim == 0:
            key = self._stored(rule, layer)[0][0]
            return self.reader.read(key, (start, 0), (end - start, self.arch.hidden_size))
        return self._of_its_rule(name)[name].narrow(dim, start, end - start)

    def megatron(self, rule: TensorRule, layer: int) -> torch.Tensor:
        """The whole megatron-core tensor of a rule."""
        parts = []
        for key, is_stacked in self._stored(rule, layer):
            shape = self.reader.shape(key)
            if is_stacked:
                part = self.reader.read(key, (layer, *[0] * (len(shape) - 1)), (1, *shape[1:]))[0]
            else:
                part = self.reader.read(key)
            parts.append(part)
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        self._compare(rule, layer, tensor)
        return tensor

    def _compare(self, rule: TensorRule, layer: int, tensor: torch.Tensor) -> None:
        """Raise `CheckpointError` where the tensor is not the one whose checksum was recorded."""
        name = stored_name(rule.megatron.format(layer=layer))
        if name not in self._checksums:
            return
        real = tensor[: self.arch.vocab_size] if rule.layout == "vocab" else tensor
        if as_text({name: checksum(real)})[name] != self._checksums[name]:
            raise CheckpointError(
                f"{self.reader.directory} holds other weights in {name} than were recorded when it was written; "
                "it is damaged: use another checkpoint"
            )

    def megatron_shape(self, rule: TensorRule, layer: int) -> tuple[int, ...]:
        """Shape of the whole megatron-core tensor of a rule, as stored."""
        shapes = [
            self.reader.shape(key)[1:] if is_stacked else self.reader.shape(key)
            for key, is_stacked in self._stored(rule, layer)
        ]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _stored(self, rule: TensorRule, layer: int) -> list[tuple[str, bool]]:
        """Keys that hold a rule's tensor, and whether all layers are stacked in them.

        megatron-core stacks layers, or names each; and may keep the gate and up rows apart (`_w`, `_v`).
        """
        parameter = rule.megatron.format(layer=layer)
        key, number = stored_key(parameter)
        single = key if number is None else key.replace("decoder.layers.", f"decoder.layers.{number}.", 1)
        candidates = [([key], number is not None), ([single], False), ([f"{single}_w", f"{single}_v"], False)]
        candidates.append(([parameter], False))
        for keys, is_stacked in candidates:
            found = [self._prefix + key for key in keys]
            if set(found) <= self.reader.keys:
                return [(key, is_stacked) for key in found]
        raise CheckpointError(
            f"{self.reader.directory} lacks {self._prefix}{key}; it is of another model, or incomplete"
        )
