"""Output layer and cross entropy together, a chunk of tokens at a time.

Place in the flow: the last thing the last pipeline stage computes. Invariant: the losses, and the gradients of
hidden states and output matrix, are those of a softmax over the whole vocabulary of all tensor ranks in fp32;
but logits exist for one chunk of tokens only.

Both passes happen in the forward call: the gradient of the sum of weighted losses is linear in what comes from
behind, a single number, so nothing of the size of the logits is kept and no logit is computed twice.

Shapes: T tokens, C tokens of a chunk, H hidden, V vocabulary on this rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cptron.model.fused import fused


class TokenLosses(NamedTuple):
    """What the last stage returns while training or evaluating."""

    weighted_sum: torch.Tensor
    """Sum over tokens of weight * loss in nats, fp32 scalar; carries the gradient."""
    loss: torch.Tensor
    """Loss of each token in nats, fp32 `[B, S]`, without gradient."""


class Vocabulary(NamedTuple):
    """The rows of the output matrix that this tensor rank holds."""

    first_row: int
    num_real_rows: int
    """Rows after these are padding and take no part in the softmax."""
    group: Any
    """The tensor parallel group, or None where the vocabulary is whole."""


def weighted_losses(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    weights_T: torch.Tensor,
    vocabulary: Vocabulary,
    chunk_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weights * losses, losses `[T]`). The gradient of `hidden_TH` is this rank's part: sum it over
    tensor ranks."""
    chunk = chunk_tokens or hidden_TH.size(0)
    arguments = (hidden_TH, weight_VH, labels_T, weights_T, vocabulary, chunk)
    total, losses_T = _WeightedLosses.apply(*arguments)  # type: ignore[no-untyped-call]
    return total, losses_T


class _WeightedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_T: torch.Tensor,
        weights_T: torch.Tensor,
        vocabulary: Vocabulary,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden_TH = torch.empty_like(hidden_TH) if need_hidden else None
        grad_weight_VH: torch.Tensor | None = None
        losses_T = torch.empty(labels_T.shape, dtype=torch.float32, device=hidden_TH.device)
        for start in range(0, len(labels_T), chunk):
            part = slice(start, start + chunk)
            hidden_CH, local_C = hidden_TH[part], labels_T[part] - vocabulary.first_row
            logits_CV = hidden_CH @ weight_VH.t()
            log_sum_C, target_C = _log_sum_and_target(logits_CV, local_C, vocabulary)
            losses_T[part] = log_sum_C - target_C
            if need_hidden or need_weight:
                grad_CV = _gradient(logits_CV, local_C, log_sum_C, weights_T[part], vocabulary.num_real_rows)
                del logits_CV
                if grad_hidden_TH is not None:
                    torch.matmul(grad_CV, weight_VH, out=grad_hidden_TH[part])
                if need_weight:
                    grad_weight_VH = _accumulate(grad_weight_VH, grad_CV.t() @ hidden_CH)
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        ctx.save_for_backward(grad_hidden_TH, grad_weight_VH)
        ctx.mark_non_differentiable(losses_T)
        return (losses_T * weights_T).sum(), losses_T

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: Any) -> Any:
        grad_hidden_TH, grad_weight_VH = ctx.saved_tensors
        if grad_hidden_TH is not None:
            grad_hidden_TH = grad_hidden_TH * grad_total.to(grad_hidden_TH.dtype)
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH * grad_total.to(grad_weight_VH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None, None


def _accumulate(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """The first chunk's own tensor, from the second on an fp32 sum: bf16 would lose small parts."""
    return part if total is None else total.float().add_(part)


def _log_sum_and_target(
    logits_CV: torch.Tensor, local_C: torch.Tensor, vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the sum of exponentials, and the logit of the label, over all tensor ranks; fp32 `[C]`."""
    max_C = _largest(logits_CV, vocabulary.num_real_rows)
    if vocabulary.group is not None:
        dist.all_reduce(max_C, dist.ReduceOp.MAX, group=vocabulary.group)
    sum_C, target_C = _sum_and_target(logits_CV, local_C, max_C, vocabulary.num_real_rows)
    if vocabulary.group is not None:
        both_2C = torch.stack([sum_C, target_C])
        dist.all_reduce(both_2C, group=vocabulary.group)
        sum_C, target_C = both_2C.unbind()
    return max_C + sum_C.log(), target_C


def _real(logits_CV: torch.Tensor, num_real: int) -> torch.Tensor:
    return logits_CV[:, :num_real].float()


@fused
def _largest(logits_CV: torch.Tensor, num_real: int) -> torch.Tensor:
    if num_real == 0:  # a tensor rank whose rows are all padding
        return torch.full(logits_CV.shape[:1], -torch.inf, device=logits_CV.device)
    return _real(logits_CV, num_real).amax(-1)


@fused
def _sum_and_target(
    logits_CV: torch.Tensor, local_C: torch.Tensor, max_C: torch.Tensor, num_real: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of exp(logit - max); and the label's logit, 0 where another rank has it."""
    sum_C = (_real(logits_CV, num_real) - max_C[:, None]).exp_().sum(-1)
    mine_C = (local_C >= 0) & (local_C < num_real)
    place_C = local_C.clamp(0, logits_CV.size(-1) - 1)
    target_C = logits_CV.gather(-1, place_C[:, None])[:, 0].float()
    return sum_C, torch.where(mine_C, target_C, 0.0)


@fused
def _gradient(
    logits_CV: torch.Tensor,
    local_C: torch.Tensor,
    log_sum_C: torch.Tensor,
    weights_C: torch.Tensor,
    num_real: int,
) -> torch.Tensor:
    """weight * (softmax - one at the label), in the logits' dtype; 0 in padding columns."""
    grad_CV = (logits_CV.float() - log_sum_C[:, None]).exp_().mul_(weights_C[:, None])
    grad_CV[:, num_real:] = 0
    mine_C = (local_C >= 0) & (local_C < num_real)
    place_C = local_C.clamp(0, logits_CV.size(-1) - 1)
    grad_CV.scatter_add_(-1, place_C[:, None], torch.where(mine_C, -weights_C, 0.0)[:, None])
    return grad_CV.to(logits_CV.dtype)
