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
from cptron.model.top_targets import Divergence, TopTargets, divergence


class TokenLosses(NamedTuple):
    """What the last stage returns while training or evaluating."""

    weighted_sum: torch.Tensor
    """Sum over tokens of weight * loss in nats, fp32 scalar; carries the gradient."""
    loss: torch.Tensor
    """Loss of each token in nats, fp32 `[B, S]`, without gradient."""
    divergence: torch.Tensor | None = None
    """From the teacher, of each token in nats where it is asked and else 0, fp32 `[B, S]`, without gradient; None
    without a teacher. The sum above has it too, by its weights."""


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
    rows = (labels_T, weights_T)
    return losses_and_divergence(hidden_TH, weight_VH, *rows, vocabulary, chunk_tokens, None)[:2]


def losses_and_divergence(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    weights_T: torch.Tensor,
    vocabulary: Vocabulary,
    chunk_tokens: int,
    teacher: TopTargets | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The same with, in the sum, the divergence from `teacher` by its weights; and that of each token `[T]`."""
    chunk = chunk_tokens or hidden_TH.size(0)
    # inside the function autograd is off in any case, so it cannot see for itself whether gradients are wanted
    arguments = (
        hidden_TH,
        weight_VH,
        labels_T,
        weights_T,
        vocabulary,
        chunk,
        torch.is_grad_enabled(),
        teacher,
    )
    total, losses_T, divergence_T = _WeightedLosses.apply(*arguments)  # type: ignore[no-untyped-call]
    return total, losses_T, None if teacher is None else divergence_T


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
        with_gradients: bool,
        teacher: TopTargets | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        need_hidden, need_weight = (needed and with_gradients for needed in ctx.needs_input_grad[:2])
        grad_hidden_TH = torch.empty_like(hidden_TH) if need_hidden else None
        grad_weight_VH: torch.Tensor | None = None
        losses_T = torch.empty(labels_T.shape, dtype=torch.float32, device=hidden_TH.device)
        divergence_T = torch.zeros_like(losses_T if teacher is not None else losses_T[:0])
        for start in range(0, len(labels_T), chunk):
            part = slice(start, start + chunk)
            hidden_CH, local_C = hidden_TH[part], labels_T[part] - vocabulary.first_row
            exps_CV, sum_C, losses_T[part] = _exponentials_and_loss(
                hidden_CH @ weight_VH.t(), local_C, vocabulary
            )
            pull = None if teacher is None else divergence(exps_CV, sum_C, teacher.part(part), vocabulary)
            if teacher is not None and pull is not None:
                divergence_T[part] = torch.where(teacher.weights_T[part] > 0, pull.nats_C, 0.0)
            if need_hidden or need_weight:
                if teacher is None or pull is None:
                    grad_CV = _gradient(exps_CV, local_C, sum_C, weights_T[part], hidden_TH.dtype)
                else:
                    both = (weights_T[part], teacher.weights_T[part])
                    grad_CV = _distilled_gradient(exps_CV, local_C, sum_C, *both, pull, hidden_TH.dtype)
                del exps_CV
                if grad_hidden_TH is not None:
                    torch.matmul(grad_CV, weight_VH, out=grad_hidden_TH[part])
                if need_weight:
                    part_VH = grad_CV.t() @ hidden_CH
                    grad_weight_VH = _accumulate(grad_weight_VH, part_VH, alone=chunk >= len(labels_T))
                    del part_VH
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        ctx.save_for_backward(grad_hidden_TH, grad_weight_VH)
        ctx.mark_non_differentiable(losses_T, divergence_T)
        total = (losses_T * weights_T).sum()
        if teacher is not None:
            total = total + (divergence_T * teacher.weights_T).sum()
        return total, losses_T, divergence_T

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, *_: Any) -> Any:
        grad_hidden_TH, grad_weight_VH = ctx.saved_tensors
        for grad in (grad_hidden_TH, grad_weight_VH):
            if grad is not None:
                grad.mul_(grad_total.to(grad.dtype))  # in place: backward runs once
        return grad_hidden_TH, grad_weight_VH, None, None, None, None, None, None


def _accumulate(total: torch.Tensor | None, part: torch.Tensor, *, alone: bool = False) -> torch.Tensor:
    """An only chunk's own tensor, else an fp32 sum: bf16 would lose small parts. The sum is fp32 from the first chunk
    on: to change it at the second would keep both beside that one's part."""
    if total is None:
        return part if alone else part.float()
    return total.add_(part)


def _exponentials_and_loss(
    logits_CV: torch.Tensor, local_C: torch.Tensor, vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(logit - max) of this rank's rows, 0 in padding; their sum over all tensor ranks, and the loss, fp32 `[C]`."""
    max_C = _largest(logits_CV, vocabulary.num_real_rows)
    if vocabulary.group is not None:
        dist.all_reduce(max_C, dist.ReduceOp.MAX, group=vocabulary.group)
    exps_CV, sum_C, target_C = _exponentials(logits_CV, local_C, max_C, vocabulary.num_real_rows)
    if vocabulary.group is not None:
        both_2C = torch.stack([sum_C, target_C])
        dist.all_reduce(both_2C, group=vocabulary.group)
        sum_C, target_C = both_2C.unbind()
    return exps_CV, sum_C, sum_C.log() - target_C


@fused
def _largest(logits_CV: torch.Tensor, num_real: int) -> torch.Tensor:
    if num_real == 0:  # a tensor rank whose rows are all padding
        return torch.full(logits_CV.shape[:1], -torch.inf, device=logits_CV.device)
    return logits_CV[:, :num_real].amax(-1).float()


@fused
def _exponentials(
    logits_CV: torch.Tensor, local_C: torch.Tensor, max_C: torch.Tensor, num_real: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(logit - max), its sum, and the label's logit - max, which is 0 where another rank has the label."""
    shifted_CV = logits_CV.float() - max_C[:, None]
    target_C = shifted_CV.gather(-1, _column(local_C, shifted_CV))[:, 0]
    exps_CV = shifted_CV.exp_()
    exps_CV[:, num_real:] = 0
    return exps_CV, exps_CV.sum(-1), torch.where(_is_here(local_C, num_real), target_C, 0.0)


@fused
def _gradient(
    exps_CV: torch.Tensor,
    local_C: torch.Tensor,
    sum_C: torch.Tensor,
    weights_C: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """weight * (softmax - one at the label), made where the exponentials were."""
    grad_CV = exps_CV.mul_((weights_C / sum_C)[:, None])
    here_C = _is_here(local_C, exps_CV.size(-1))  # a label is never a padding row
    grad_CV.scatter_add_(-1, _column(local_C, grad_CV), torch.where(here_C, -weights_C, 0.0)[:, None])
    return grad_CV.to(dtype)


def _distilled_gradient(
    exps_CV: torch.Tensor,
    local_C: torch.Tensor,
    sum_C: torch.Tensor,
    weights_C: torch.Tensor,
    teacher_C: torch.Tensor,
    pull: Divergence,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The same with the divergence's gradient, by the teacher's weights; `exps_CV` is as `divergence` leaves it."""
    grad_CV = exps_CV.mul_(((weights_C + teacher_C * pull.factor_C) / sum_C)[:, None])
    of_teacher_CK = (weights_C + teacher_C)[:, None] * pull.q_CK - teacher_C[:, None] * pull.p_CK
    grad_CV.scatter_add_(-1, pull.columns_CK, of_teacher_CK)
    here_C = _is_here(local_C, exps_CV.size(-1))
    grad_CV.scatter_add_(-1, _column(local_C, grad_CV), torch.where(here_C, -weights_C, 0.0)[:, None])
    return grad_CV.to(dtype)


def _is_here(local_C: torch.Tensor, num_rows: int) -> torch.Tensor:
    return (local_C >= 0) & (local_C < num_rows)


def _column(local_C: torch.Tensor, of_CV: torch.Tensor) -> torch.Tensor:
    return local_C.clamp(0, of_CV.size(-1) - 1)[:, None]
