"""What a teacher says of the next token: its most likely tokens, and one bucket for all the others.

Place in the flow: a frozen model makes these (`top_tokens`), `vocab_loss` adds the divergence from them to the loss.
Invariant: divergence and gradient are those of a softmax over the whole vocabulary of all tensor ranks in fp32, with
the tokens that are not among the teacher's taken together:

    KL = sum over its tokens i of p_i log(p_i / q_i)  +  p_r log(p_r / q_r),    p_r = 1 - sum p_i, q_r = 1 - sum q_i

Shapes: T tokens, C tokens of a chunk, H hidden, V vocabulary on this rank, K tokens of the teacher.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

SMALLEST = 1e-30
"""Probabilities are not taken to be less."""


class TopTargets(NamedTuple):
    """For each token the teacher's most likely next ones."""

    ids_TK: torch.Tensor
    probabilities_TK: torch.Tensor
    """fp32; each at most 1 together."""
    weights_T: torch.Tensor
    """Of the divergence in the loss, fp32; 0 where the teacher is not asked."""

    def part(self, tokens: slice) -> TopTargets:
        """Of some of the tokens."""
        return TopTargets(*(tensor[tokens] for tensor in self))


class Divergence(NamedTuple):
    """Of one chunk, before its exponentials become a gradient."""

    nats_C: torch.Tensor
    factor_C: torch.Tensor
    """With what the weighted softmax is multiplied, for tokens outside of the teacher's: 1 - p_r / q_r."""
    columns_CK: torch.Tensor
    q_CK: torch.Tensor
    """The model's probabilities of the teacher's tokens that this rank has; 0 of those that others have."""
    p_CK: torch.Tensor
    """The teacher's, likewise."""


@torch.no_grad()
def divergence(
    exps_CV: torch.Tensor, sum_C: torch.Tensor, targets: TopTargets, vocabulary: Any
) -> Divergence:
    """`exps_CV` is exp(logit - max) of this rank's rows, 0 in padding, and is left without the teacher's tokens: their
    gradient is no difference of p_r / q_r times them, which may be huge. `sum_C` is its sum over all tensor ranks
    before."""
    local_CK = targets.ids_TK - vocabulary.first_row
    here_CK = (local_CK >= 0) & (local_CK < vocabulary.num_real_rows)
    columns_CK = local_CK.clamp(0, exps_CV.size(-1) - 1)
    own_CK = torch.where(here_CK, exps_CV.gather(-1, columns_CK), 0.0)
    # the others' sum is added up, not subtracted: it may be far smaller than the whole
    exps_CV.scatter_add_(-1, columns_CK, -own_CK)
    both_CK1 = torch.cat([own_CK, exps_CV.sum(-1, keepdim=True)], dim=1)
    if vocabulary.group is not None:
        dist.all_reduce(both_CK1, group=vocabulary.group)
    q_CK1 = both_CK1 / sum_C[:, None]
    p_CK = targets.probabilities_TK
    p_CK1 = torch.cat([p_CK, (1 - p_CK.sum(-1, keepdim=True)).clamp(min=0)], dim=1)
    logs_CK1 = p_CK1.clamp(min=SMALLEST).log() - q_CK1.clamp(min=SMALLEST).log()
    ratio_C = p_CK1[:, -1] / q_CK1[:, -1].clamp(min=SMALLEST)
    nats_C = (p_CK1 * logs_CK1).sum(-1)
    return Divergence(
        nats_C, 1 - ratio_C, columns_CK, own_CK / sum_C[:, None], torch.where(here_CK, p_CK, 0.0)
    )


@torch.no_grad()
def top_tokens(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, vocabulary: Any, top_k: int, chunk_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` most likely tokens of the whole vocabulary and their probabilities `[T, K]`, on every tensor rank."""
    chunk = chunk_tokens or hidden_TH.size(0)
    parts = [
        _top_of_chunk((hidden_TH[start : start + chunk] @ weight_VH.t()).float(), vocabulary, top_k)
        for start in range(0, hidden_TH.size(0), chunk)
    ]
    ids, probabilities = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(probabilities)


def _top_of_chunk(logits_CV: torch.Tensor, vocabulary: Any, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits_CV[:, vocabulary.num_real_rows :] = -torch.inf
    values_CK, ids_CK = logits_CV.topk(min(top_k, logits_CV.size(-1)), dim=-1)
    ids_CK = ids_CK + vocabulary.first_row
    log_sum_C = logits_CV.logsumexp(-1)
    if vocabulary.group is not None:
        size = vocabulary.group.size()
        values_CK, ids_CK = (_gathered(tensor, size, vocabulary.group) for tensor in (values_CK, ids_CK))
        log_sum_C = _gathered(log_sum_C[:, None], size, vocabulary.group).logsumexp(-1)
        values_CK, places_CK = values_CK.topk(top_k, dim=-1)
        ids_CK = ids_CK.gather(-1, places_CK)
    return ids_CK, (values_CK - log_sum_C[:, None]).exp()


def _gathered(tensor_CK: torch.Tensor, size: int, group: Any) -> torch.Tensor:
    """Every tensor rank's columns side by side."""
    parts = [torch.empty_like(tensor_CK) for _ in range(size)]
    dist.all_gather(parts, tensor_CK.contiguous(), group=group)
    return torch.cat(parts, dim=1)
