"""Name of an optimizer -> what is inside megatron-core's, and how megatron-core is configured for it.

Place in the flow: read by `optimizer.build_optimizer`. A new optimizer is a new entry here. Imports no megatron.
Invariant: whatever an entry makes keeps only state that `stored_state` can save and load under any layout, or
says that it shards nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cptron.config.schema import OptimConfig
from cptron.optim.adamw import AdamW
from cptron.optim.sgd import SGD
from cptron.optim.shard_optimizer import ShardOptimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one optimizer is made."""

    inner: type[ShardOptimizer] | None
    """What takes the place of FusedAdam; None leaves what megatron-core found installed."""
    make: Callable[..., Any] | None
    """Makes it from the arguments that megatron-core has for FusedAdam."""
    settings: dict[str, Any]
    """Fields of megatron-core's OptimizerConfig."""
    sharded: bool = True
    """State is divided over the data parallel ranks."""


def recipe(optim: OptimConfig, fused_adam_installed: bool) -> Recipe:
    """The recipe of `optim.name`."""
    return RECIPES[optim.name](optim, fused_adam_installed)


def shards_state(name: str) -> bool:
    """Whether megatron-core can divide this optimizer's state over the data parallel ranks."""
    return name != "muon"


def _adam_settings(optim: OptimConfig) -> dict[str, Any]:
    return {
        "optimizer": "adam",
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_eps": optim.eps,
    }


def _adamw(optim: OptimConfig, fused_adam_installed: bool) -> Recipe:
    """FusedAdam where it is installed, else ours; ours for bf16 moments, so that they mean one thing."""
    settings = _adam_settings(optim)
    if optim.moments == "bf16":

        def make(**arguments: Any) -> AdamW:
            return AdamW(**arguments, moments=torch.bfloat16)

        return Recipe(inner=AdamW, make=make, settings=settings)
    if fused_adam_installed:
        return Recipe(inner=None, make=None, settings=settings)
    return Recipe(inner=AdamW, make=AdamW, settings=settings)


def _sgd(optim: OptimConfig, fused_adam_installed: bool) -> Recipe:
    """To megatron-core it is an Adam, since nothing else passes its distributed optimizer's checks."""

    def make(*, params: Any, lr: float, weight_decay: float, **of_adam: Any) -> SGD:
        return SGD(params, lr=lr, momentum=optim.momentum, weight_decay=weight_decay)

    return Recipe(inner=SGD, make=make, settings=_adam_settings(optim))


def _muon(optim: OptimConfig, fused_adam_installed: bool) -> Recipe:
    """Matrices of the layers by Muon, the rest by AdamW; megatron-core has no sharded form of it in all versions."""
    adam = _adamw(optim, fused_adam_installed)
    settings = {
        **adam.settings,
        "optimizer": "muon",
        "muon_momentum": optim.momentum,
        "muon_tp_mode": "duplicated",  # whole matrices; megatron-core's default would let the cut change the update
    }
    return Recipe(inner=adam.inner, make=adam.make, settings=settings, sharded=False)


RECIPES: dict[str, Callable[[OptimConfig, bool], Recipe]] = {"adamw": _adamw, "sgd": _sgd, "muon": _muon}
