"""SGD with momentum, with a state layout that megatron-core's distributed optimizer can checkpoint.

Place in the flow: the inner optimizer for `optim.name: sgd`, also where Transformer Engine or Apex is
installed. megatron-core's own SGD branch cannot be used: its distributed optimizer refuses anything but Adam,
because it stores state named `exp_avg` and `exp_avg_sq` only. Here the momentum is `exp_avg`, and `stored_state`
leaves the other out. Invariant: the same update as `torch.optim.SGD` without dampening and Nesterov; its weight
decay is added to the gradient, as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.sgd import sgd

from cptron.optim.shard_optimizer import ShardOptimizer


class SGD(ShardOptimizer):
    """buffer = momentum * buffer + gradient + weight_decay * weight; weight -= lr * buffer."""

    state_names = ("exp_avg",)

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        momentum = group["momentum"]
        buffers = [self.state[param]["exp_avg"] for param in params] if momentum else [None] * len(params)
        sgd(
            params,
            [param.grad for param in params if param.grad is not None],
            buffers,
            fused=True,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
