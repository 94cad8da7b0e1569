"""megatron-core's distributed optimizer over the model's gradient buffers.

Place in the flow: after the model is wrapped for data parallelism, before weights are loaded. Adapter:
hides how the inner AdamW is made known to megatron-core. Invariant: non-finite gradients are found before
any weight changes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import optimizer as mcore_optimizer
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, distrib_optimizer, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from cptron.config.schema import OptimConfig
from cptron.errors import TrainingError
from cptron.optim.adamw import AdamW


def wrap_for_data_parallel(model: Any) -> Any:
    """megatron-core's DistributedDataParallel: fp32 gradients in contiguous buffers, reduced by shards."""
    on_gpu = torch.cuda.is_available()
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=on_gpu,
        use_distributed_optimizer=True,
        check_for_nan_in_grad=False,  # `apply_gradients` checks the global norm, on every rank alike
    )
    return DistributedDataParallel(config=model.config, ddp_config=ddp_config, module=model)


def _register_inner_adam() -> None:
    """Make our AdamW the FusedAdam of megatron-core where Apex and Transformer Engine are both absent.

    Without one of them its distributed optimizer takes a branch for torch's Adam that cannot load what it
    saved.
    """
    if distrib_optimizer.HAVE_APEX_OR_TE:
        return
    mcore_optimizer.Adam = AdamW
    mcore_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = AdamW
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True


def build_optimizer(optim: OptimConfig, model: Any, precision: Literal["bf16", "fp32"]) -> Any:
    """Distributed AdamW: fp32 masters and moments divided over the data parallel ranks."""
    _register_inner_adam()
    config = OptimizerConfig(
        optimizer="adam",
        lr=1.0,  # constants: `set_rates` writes the real ones at each step, and groups are matched by them on load
        min_lr=0.0,
        weight_decay=1.0,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad_norm,
        bf16=precision == "bf16",
        params_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(config, [model], use_gloo_process_groups=False)
    model.config.finalize_model_grads_func = finalize_model_grads  # reduces, and divides by the global tokens
    model.config.no_sync_func = model.no_sync if model.ddp_config.overlap_grad_reduce else None
    return optimizer


def set_rates(optimizer: Any, lr: float, optim: OptimConfig) -> None:
    """Write this step's rate and the configured decay into every group, whatever a checkpoint brought
    along."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = optim.weight_decay * group.get("wd_mult", 1.0)
        group["betas"] = (optim.beta1, optim.beta2)
        group["eps"] = optim.eps


def apply_gradients(optimizer: Any, clip_grad_norm: float) -> float:
    """Clip and take the optimizer step; returns the global L2 norm before clipping.

    Raises `TrainingError` on every rank, with weights and moments unchanged, when the norm is not finite.
    """
    optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm())
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"gradient norm is {grad_norm}; no weight was changed. Lower optim.lr or look at the batch of this step"
        )
    if clip_grad_norm > 0:
        clip_grad_by_total_norm_fp32(
            optimizer.get_parameters(), max_norm=clip_grad_norm, total_norm=grad_norm
        )
    optimizer.step_with_ready_grads()
    return grad_norm
