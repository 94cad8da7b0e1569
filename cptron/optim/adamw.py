"""AdamW with the state layout that megatron-core's distributed optimizer checkpoints, on torch's fused
kernels.

Place in the flow: the inner optimizer where neither Transformer Engine nor Apex is installed. Its contract
is that of their FusedAdam: `step` is an int in each parameter group, and a parameter's state is exactly
`exp_avg` and `exp_avg_sq`. Invariant: the same update as `torch.optim.AdamW` (Loshchilov and Hutter 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adamw import adamw


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay; bias correction from the group's step. Arguments as FusedAdam takes them."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        assert adam_w_mode and not capturable, "neither L2 decay nor CUDA graph capture is offered"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and count the step in every group."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        for param in params:
            state = self.state[param]
            if not state:
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
        # torch's kernels add 1 to the step tensors they are given; one tensor each, made by a single kernel
        steps = torch.full((len(params),), group["step"] - 1.0, device=params[0].device).unbind()
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [param.grad for param in params if param.grad is not None],
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            list(steps),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
