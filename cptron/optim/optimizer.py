"""megatron-core's distributed optimizer over the model's gradient buffers.

Place in the flow: after the chunks are wrapped for data parallelism, before weights are loaded. Adapter: hides
how the inner optimizer is made known to megatron-core. Invariant: non-finite gradients are found before any
weight changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import optimizer as mcore_optimizer
from megatron.core.optimizer import (
    OptimizerConfig,
    distrib_optimizer,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate

from cptron.config.schema import OptimConfig
from cptron.errors import ConfigError, TrainingError
from cptron.optim.data_parallel import finish_param_gather, wrap_chunks
from cptron.optim.names import freeze, rate_groups
from cptron.optim.nonfinite import describe_nonfinite
from cptron.optim.registry import Recipe, recipe
from cptron.optim.shard_optimizer import ShardOptimizer

__all__ = [
    "apply_gradients",
    "build_optimizer",
    "finish_param_gather",
    "freeze",
    "gradient_norm",
    "set_rates",
    "wrap_chunks",
]

_FOUND = {
    (mcore_optimizer, "Adam"): mcore_optimizer.Adam,
    (mcore_optimizer, "USING_PYTORCH_OPTIMIZER"): mcore_optimizer.USING_PYTORCH_OPTIMIZER,
    (distrib_optimizer, "Adam"): distrib_optimizer.Adam,
    (distrib_optimizer, "HAVE_APEX_OR_TE"): distrib_optimizer.HAVE_APEX_OR_TE,
    (distrib_optimizer, "USING_APEX_OPTIMIZER"): distrib_optimizer.USING_APEX_OPTIMIZER,
}
"""What megatron-core found installed, kept because one process may make several optimizers."""


def _register_inner(chosen: Recipe) -> None:
    """Make the inner optimizer the FusedAdam of megatron-core, as if Apex had it.

    Without one its distributed optimizer takes a branch for torch's Adam that cannot load what it saved.
    """
    for (module, name), value in _FOUND.items():
        setattr(module, name, value)
    if chosen.inner is None:
        return
    mcore_optimizer.Adam = chosen.make
    mcore_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = chosen.inner
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def build_optimizer(optim: OptimConfig, chunks: Sequence[Any], precision: Literal["bf16", "fp32"]) -> Any:
    """The configured optimizer: fp32 masters and its state divided over the data parallel ranks. Collective.

    `chunks` are those of `wrap_chunks` for the same `optim.name`. Raises `ConfigError` on every rank when a pattern
    of `optim.groups` fits nothing, or Muon cannot be had.
    """
    chosen = recipe(optim, fused_adam_installed=_FOUND[distrib_optimizer, "HAVE_APEX_OR_TE"])
    _register_inner(chosen)
    ddp_config = chunks[0].ddp_config
    assert ddp_config.use_distributed_optimizer == chosen.sharded, "chunks were wrapped for another optimizer"
    config = OptimizerConfig(
        **chosen.settings,
        lr=1.0,  # constants: `set_rates` writes the real ones at each step
        min_lr=0.0,
        weight_decay=1.0,
        clip_grad=optim.clip_grad_norm,
        bf16=precision == "bf16",
        params_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        use_distributed_optimizer=chosen.sharded,
        fp8_recipe=chunks[0].config.fp8_recipe if chunks[0].config.fp8 else None,
        overlap_param_gather=ddp_config.overlap_param_gather,
    )
    overrides = {**get_standard_config_overrides(config), **_rate_overrides(optim, chunks)}
    optimizer = _make(config, chunks, overrides)
    optimizer.wrapped_chunks = list(chunks)
    for part in optimizer.chained_optimizers:
        if isinstance(part, distrib_optimizer.DistributedOptimizer) and isinstance(
            part.optimizer, ShardOptimizer
        ):
            part.optimizer.allocate()
    return optimizer


def _make(config: OptimizerConfig, chunks: Sequence[Any], overrides: dict[Any, Any]) -> Any:
    make = get_megatron_optimizer
    if config.optimizer == "muon":
        make = _muon_maker()
    return make(config, list(chunks), config_overrides=overrides, use_gloo_process_groups=False)


def _muon_maker() -> Any:
    """megatron-core's function that makes it. Raises `ConfigError` where it cannot import what it needs."""
    from megatron.core.optimizer.muon import get_megatron_muon_optimizer

    newer = find_spec("megatron.core.optimizer.emerging_optimizers") is not None
    importer = import_module(f"megatron.core.optimizer.{'emerging_optimizers' if newer else 'muon'}")
    if not importer.HAVE_EMERGING_OPTIMIZERS:
        raise ConfigError(
            f"optim.name=muon: megatron-core {version('megatron-core')} cannot import what it needs of the package "
            "emerging_optimizers; install the version made for it, and triton, or use optim.name=adamw"
        )
    return get_megatron_muon_optimizer


def _rate_overrides(optim: OptimConfig, chunks: Sequence[Any]) -> dict[Any, Any]:
    """megatron-core's form of `optim.groups`."""
    overrides = {}
    for number, (lr_mult, params) in enumerate(rate_groups(chunks, optim.groups)):
        members = {id(param) for param in params}

        def is_member(param: torch.Tensor, members: set[int] = members) -> bool:
            return id(param) in members

        predicate = ParamPredicate(name=f"optim.groups {number}", fn=is_member)
        overrides[ParamKey(predicate=predicate)] = {"lr_mult": lr_mult}
    return overrides


def set_rates(optimizer: Any, lr: float, optim: OptimConfig) -> None:
    """Write this step's rate and the configured settings into every group, whatever a checkpoint brought
    along."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = optim.weight_decay * group.get("wd_mult", 1.0)
        if "betas" in group:
            group["betas"] = (optim.beta1, optim.beta2)
            group["eps"] = optim.eps
        for key in ("momentum", "momentum_beta"):  # ours, and Muon's
            if key in group:
                group[key] = optim.momentum


def gradient_norm(optimizer: Any, change: Callable[[], None] = lambda: None) -> float:
    """Global L2 norm of the gradient before clipping, the same on every rank; collective, and changes no weight.

    `change` is called when the gradients are ready, reduced and divided, and may change them: the norm is of what it
    leaves, and so is what is clipped.
    """
    optimizer.prepare_grads()
    change()
    return float(optimizer.get_grad_norm())


def apply_gradients(optimizer: Any, clip_grad_norm: float, grad_norm: float) -> None:
    """Clip and take the optimizer step; `grad_norm` is what `gradient_norm` has just returned.

    Raises `TrainingError` on every rank, with weights and state unchanged, when the norm is not finite.
    """
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"gradient norm is {grad_norm}; no weight was changed. {describe_nonfinite(optimizer.wrapped_chunks)}. "
            "Lower optim.lr or look at the batch of this step"
        )
    parameters = [
        param
        for part in optimizer.chained_optimizers
        for param in part.get_parameters()
        if param.grad is not None
    ]
    if clip_grad_norm > 0 and parameters:
        clip_grad_by_total_norm_fp32(parameters, max_norm=clip_grad_norm, total_norm=grad_norm)
    optimizer.step_with_ready_grads()
    _count_step_of_empty_groups(optimizer)


def _count_step_of_empty_groups(optimizer: Any) -> None:
    """FusedAdam skips groups without parameters; a rank whose parameters are all frozen must know the step too,
    since it may be the one that writes it."""
    for part in optimizer.chained_optimizers:
        if not isinstance(part.optimizer, ShardOptimizer):
            steps = [group["step"] for group in part.param_groups if group["params"] and "step" in group]
            for group in part.param_groups:
                if not group["params"]:
                    group["step"] = steps[0] if steps else group.get("step", 0) + 1
