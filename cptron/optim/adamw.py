"""AdamW with the state layout that megatron-core's distributed optimizer checkpoints, on torch's fused
kernels.

Place in the flow: the inner optimizer where neither Transformer Engine nor Apex is installed, and everywhere
for bf16 moments. Its contract is that of their FusedAdam (`shard_optimizer`). Invariant: the same update as
`torch.optim.AdamW` (Loshchilov and Hutter 2019); bf16 moments are computed in fp32 and rounded when stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.adamw import adamw

from cptron.optim.shard_optimizer import ShardOptimizer

SCRATCH_ELEMENTS = 1 << 24
"""Elements whose bf16 moments are in fp32 at one time: 128 MiB of scratch for the two."""

Piece = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Views of a parameter, its gradient and its two moments."""


class AdamW(ShardOptimizer):
    """Decoupled weight decay; bias correction from the group's step. Arguments as FusedAdam takes them."""

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool = True,
        capturable: bool = False,
        moments: torch.dtype | None = None,
    ) -> None:
        """`moments`: precision in which the moments are kept; None means the parameters'."""
        assert adam_w_mode and not capturable, "neither L2 decay nor CUDA graph capture is offered"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.state_dtype = moments

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        if self.state_dtype is None:
            _adamw(group, [self._whole(param) for param in params])
            return
        for pieces in _batches([self._whole(param) for param in params], SCRATCH_ELEMENTS):
            stored = [moment for piece in pieces for moment in piece[2:]]
            scratch = [moment.float() for moment in stored]
            pairs = zip(pieces, scratch[::2], scratch[1::2], strict=True)
            _adamw(group, [(*piece[:2], first, second) for piece, first, second in pairs])
            torch._foreach_copy_(stored, scratch)

    def _whole(self, param: torch.Tensor) -> Piece:
        assert param.grad is not None
        return param, param.grad, self.state[param]["exp_avg"], self.state[param]["exp_avg_sq"]


def _batches(wholes: list[Piece], limit: int) -> Iterator[list[Piece]]:
    """All elements in lists of pieces of at most `limit` elements together."""
    batch: list[Piece] = []
    room = limit
    for whole in wholes:
        param, grad, first, second = (tensor.view(-1) for tensor in whole)
        start = 0
        while start < param.numel():
            stop = min(start + room, param.numel())
            batch.append((param[start:stop], grad[start:stop], first[start:stop], second[start:stop]))
            room -= stop - start
            start = stop
            if not room:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch


def _adamw(group: dict[str, Any], pieces: list[Piece]) -> None:
    """torch's fused kernel. It adds 1 to the step tensors it is given: one each, made by a single kernel."""
    steps = torch.full((len(pieces),), group["step"] - 1.0, device=pieces[0][0].device).unbind()
    beta1, beta2 = group["betas"]
    adamw(
        [piece[0] for piece in pieces],
        [piece[1] for piece in pieces],
        [piece[2] for piece in pieces],
        [piece[3] for piece in pieces],
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
