"""The names of parameters, the same under every layout, and the patterns that choose among them.

Place in the flow: `freeze` between building and wrapping the model, `rate_groups` when the optimizer is made; both
are collective. Invariant: a pattern that fits no parameter on any rank is an error on every rank.

A name is that of the module tree, with the layer's number in the whole model (from 0) and without wrappers, as
`decoder.layers.11.mlp.linear_fc1.weight`. With tied embeddings the last stage's copy has the embedding's name, so
that both are always treated alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist

from cptron.config.schema import ParamGroupConfig
from cptron.errors import ConfigError

EMBEDDING = "embedding.word_embeddings.weight"
_LAYER = re.compile(r"^(?P<path>.*\blayers\.)(?P<number>\d+)(?P<rest>(?:\..*)?)$")


def named_parameters(chunks: Sequence[Any]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter of this rank by its name in the whole model."""
    for chunk in chunks:
        module = chunk
        while hasattr(module, "module"):
            module = module.module
        for name, param in module.named_parameters():
            yield _whole_name(module, name, param), param


def _whole_name(module: Any, name: str, param: torch.nn.Parameter) -> str:
    if name == "output_layer.weight" and getattr(param, "shared_embedding", False):
        return EMBEDDING
    return whole_name(module, name)


def whole_name(module: Any, name: str) -> str:
    """Name in the whole model of a parameter or module that the chunk `module` calls `name`."""
    found = _LAYER.match(name)
    if not found:
        return name
    layer = module.get_submodule(f"{found['path']}{found['number']}")
    return f"{found['path']}{layer.layer_number - 1}{found['rest']}"


def freeze(chunks: Sequence[Any], patterns: Sequence[str]) -> list[str]:
    """Stop training what the patterns fit, before the chunks are wrapped; returns its names over all ranks.

    Collective. Raises `ConfigError` on every rank for a pattern that fits nothing, and when nothing is left.
    """
    if not patterns:
        return []
    names = _names_anywhere(dict(named_parameters(chunks)))
    _refuse_idle_patterns("optim.frozen", patterns, names, "no parameter")
    frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if frozen == names:
        raise ConfigError(
            f"optim.frozen={list(patterns)} fits all {len(names)} parameters, so nothing would be trained; "
            "narrow the patterns"
        )
    for name, param in named_parameters(chunks):
        if name in frozen:
            param.requires_grad_(False)
    return sorted(frozen)


def rate_groups(
    chunks: Sequence[Any], groups: Sequence[ParamGroupConfig]
) -> list[tuple[float, list[torch.nn.Parameter]]]:
    """(multiplier, this rank's parameters) of each group; a parameter is in the first group that fits.

    Collective. Raises `ConfigError` on every rank for a pattern that fits no trained parameter.
    """
    if not groups:
        return []
    trained = {name: param for name, param in named_parameters(chunks) if param.requires_grad}
    patterns = [group.match for group in groups]
    _refuse_idle_patterns("optim.groups match", patterns, _names_anywhere(trained), "no trained parameter")
    found: list[tuple[float, list[torch.nn.Parameter]]] = [(group.lr_mult, []) for group in groups]
    for name, param in trained.items():
        number = next((n for n, pattern in enumerate(patterns) if fnmatchcase(name, pattern)), None)
        if number is not None:
            found[number][1].append(param)
    return found


def _names_anywhere(params: dict[str, torch.nn.Parameter]) -> set[str]:
    by_rank: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, list(params))
    return {name for names in by_rank for name in names}


def _refuse_idle_patterns(key: str, patterns: Sequence[str], names: set[str], nothing: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            examples = ", ".join(sorted(names)[:3])
            raise ConfigError(
                f"{key}={pattern!r} fits {nothing}; names are such as {examples}: correct the pattern or leave it out"
            )
