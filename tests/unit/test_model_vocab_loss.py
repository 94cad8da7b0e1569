"""Output layer and loss by chunks against torch's own cross entropy over whole logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.model import rotary, vocab_loss
from cptron.model.top_targets import TopTargets, top_tokens
from cptron.model.vocab_loss import Vocabulary, losses_and_divergence, weighted_losses


def tensors(num_tokens: int, hidden: int, rows: int, real: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Hidden states, output matrix, labels and weights, some of them 0."""
    draw = torch.Generator().manual_seed(seed)
    weights_T = torch.rand(num_tokens, generator=draw) * (torch.rand(num_tokens, generator=draw) < 0.8)
    return (
        torch.randn(num_tokens, hidden, generator=draw, dtype=torch.float64).float(),
        torch.randn(rows, hidden, generator=draw),
        torch.randint(0, real, (num_tokens,), generator=draw),
        weights_T,
    )


@settings(deadline=None)
@given(
    num_tokens=st.integers(1, 30),
    hidden=st.integers(1, 16),
    real=st.integers(1, 40),
    padding=st.integers(0, 9),
    chunk=st.integers(0, 40),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 3.5]),
)
def test_losses_and_gradients_are_those_of_whole_logits(
    num_tokens: int, hidden: int, real: int, padding: int, chunk: int, seed: int, scale: float
) -> None:
    """Whatever the chunk; padding rows take no part; a factor from behind scales the gradients."""
    hidden_TH, weight_VH, labels_T, weights_T = tensors(num_tokens, hidden, real + padding, real, seed)
    ours = [hidden_TH.clone().requires_grad_(), weight_VH.clone().requires_grad_()]
    total, losses_T = weighted_losses(*ours, labels_T, weights_T, Vocabulary(0, real, None), chunk)
    (total * scale).backward()

    theirs = [hidden_TH.double().requires_grad_(), weight_VH.double().requires_grad_()]
    logits_TV = (theirs[0] @ theirs[1].t())[:, :real]
    expected_T = torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction="none")
    (expected_T * weights_T).sum().mul(scale).backward()

    assert not losses_T.requires_grad
    torch.testing.assert_close(losses_T.double(), expected_T.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        total.detach().double(), (expected_T * weights_T).sum().detach(), rtol=1e-5, atol=1e-4
    )
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.grad is not None and wanted.grad is not None
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [0, 5])
def test_bf16_sums_weight_gradients_of_chunks_in_fp32(chunk: int) -> None:
    """Within bf16's rounding of the fp64 gradient, however many chunks are added."""
    hidden_TH, weight_VH, labels_T, weights_T = tensors(40, 16, 64, 60, 3)
    weight = weight_VH.bfloat16().requires_grad_()
    total, _ = weighted_losses(
        hidden_TH.bfloat16(), weight, labels_T, weights_T, Vocabulary(0, 60, None), chunk
    )
    total.backward()
    exact = weight_VH.bfloat16().double().requires_grad_()
    logits_TV = (hidden_TH.bfloat16().double() @ exact.t())[:, :60]
    loss_T = torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction="none")
    (loss_T * weights_T).sum().backward()
    assert weight.grad is not None and exact.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    error = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 0.02, f"relative error {error:.4f}"


def test_small_parts_of_a_gradient_are_not_lost() -> None:
    """Eight chunks of 1 after one of 256: in bf16 each of them alone would round away."""
    total = None
    for part in [256.0, *[1.0] * 8]:
        total = vocab_loss._accumulate(total, torch.full((2, 3), part, dtype=torch.bfloat16))
    assert total is not None and (total == 264).all()


def test_frozen_parts_get_no_gradient_and_evaluation_makes_none() -> None:
    """Neither a frozen output matrix nor evaluation pays for gradients."""
    hidden_TH, weight_VH, labels_T, weights_T = tensors(6, 4, 8, 8, 0)
    hidden = hidden_TH.clone().requires_grad_()
    total, _ = weighted_losses(hidden, weight_VH, labels_T, weights_T, Vocabulary(0, 8, None), 4)
    total.backward()
    assert hidden.grad is not None and weight_VH.grad is None
    with torch.no_grad():
        silent, _ = weighted_losses(hidden, weight_VH, labels_T, weights_T, Vocabulary(0, 8, None), 4)
    assert not silent.requires_grad
    torch.testing.assert_close(silent, total.detach())


def test_what_is_compiled_on_gpus_is_one_graph() -> None:
    """torch can trace each pointwise function whole, and the trace computes the same."""
    hidden_TH, weight_VH, labels_T, weights_T = tensors(6, 4, 12, 10, 1)
    logits_TV = hidden_TH @ weight_VH.t()
    max_T = logits_TV[:, :10].amax(-1)
    exps_TV = (logits_TV - max_T[:, None]).exp()
    angles = torch.rand(6, 1, 1, 4)
    calls = [
        (vocab_loss._largest, (logits_TV, 10)),
        (vocab_loss._exponentials, (logits_TV, labels_T, max_T, 10)),
        (vocab_loss._gradient, (exps_TV, labels_T, exps_TV.sum(-1), weights_T, torch.float32)),
        (rotary.rotate, (torch.rand(6, 2, 3, 8), angles.cos(), angles.sin())),
    ]
    for function, arguments in calls:
        plain = function.__wrapped__  # type: ignore[attr-defined]
        compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
        first, second = (
            [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments] for _ in range(2)
        )
        torch.testing.assert_close(compiled(*first), plain(*second))


def plain_divergence(
    logits_TV: torch.Tensor, ids_TK: torch.Tensor, probabilities_TK: torch.Tensor
) -> torch.Tensor:
    """KL of the teacher's tokens and one bucket for the others, by autograd on whole logits `[T, V]`."""
    q_TV = logits_TV.softmax(-1)
    q_TK = q_TV.gather(-1, ids_TK)
    others_TV = q_TV.scatter(-1, ids_TK, 0.0)
    p_T, q_T = 1 - probabilities_TK.sum(-1), others_TV.sum(-1)
    found_T = (probabilities_TK * (probabilities_TK / q_TK).log()).sum(-1)
    return found_T + torch.where(p_T > 0, p_T * (p_T.clamp(min=1e-300) / q_T).log(), 0.0)


@settings(deadline=None, max_examples=60)
@given(
    num_tokens=st.integers(1, 12),
    real=st.integers(2, 30),
    padding=st.integers(0, 5),
    top_k=st.integers(1, 8),
    chunk=st.integers(0, 9),
    seed=st.integers(0, 10**6),
)
def test_divergence_from_a_teacher(
    num_tokens: int, real: int, padding: int, top_k: int, chunk: int, seed: int
) -> None:
    """Teacher's answers, divergence, and the gradient of loss and divergence together: those of whole logits."""
    top_k = min(top_k, real - 1)
    hidden_TH, weight_VH, labels_T, weights_T = tensors(num_tokens, 6, real + padding, real, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    theirs_VH = weight_VH + 0.5 * torch.randn(weight_VH.shape, generator=draw)
    ids_TK, chances_TK = top_tokens(hidden_TH, theirs_VH, Vocabulary(0, real, None), top_k, chunk)
    expected_TV = (hidden_TH @ theirs_VH.t())[:, :real].softmax(-1)
    best = expected_TV.topk(top_k, dim=-1)
    torch.testing.assert_close(chances_TK, best.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(chances_TK, chances_TK.sort(descending=True).values)

    asked_T = 0.7 * (torch.rand(num_tokens, generator=draw) < 0.6)
    ours = [hidden_TH.clone().requires_grad_(), weight_VH.clone().requires_grad_()]
    total, losses_T, found_T = losses_and_divergence(
        *ours, labels_T, weights_T, Vocabulary(0, real, None), chunk, TopTargets(ids_TK, chances_TK, asked_T)
    )
    (2 * total).backward()
    exact = [hidden_TH.double().requires_grad_(), weight_VH.double().requires_grad_()]
    logits_TV = (exact[0] @ exact[1].t())[:, :real]
    nats_T = plain_divergence(logits_TV, ids_TK, chances_TK.double())
    cross_T = torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction="none")
    wanted = (cross_T * weights_T).sum() + (nats_T * asked_T).sum()
    (2 * wanted).backward()
    assert found_T is not None and not found_T.requires_grad
    torch.testing.assert_close(found_T.double(), nats_T.detach() * (asked_T > 0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.detach().double(), wanted.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses_T.double(), cross_T.detach(), rtol=1e-5, atol=1e-5)
    for mine, plain in zip(ours, exact, strict=True):
        assert mine.grad is not None and plain.grad is not None
        torch.testing.assert_close(mine.grad.double(), plain.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gap", [10.0, 20.0, 40.0, 60.0])
def test_gradient_where_the_model_is_far_surer_than_its_teacher(gap: float) -> None:
    """All other tokens together have e^-gap: what is left of the pull on the teacher's is no difference of large
    numbers."""
    logits_TV = torch.tensor([[gap, gap - 1, 0.3, -0.2, 0.0]])
    targets = TopTargets(torch.tensor([[1, 0]]), torch.tensor([[0.6, 0.3]]), torch.tensor([2.0]))
    hidden_TH, labels_T, weights_T = logits_TV.clone().requires_grad_(), torch.tensor([0]), torch.ones(1)
    total, _, _ = losses_and_divergence(
        hidden_TH, torch.eye(5), labels_T, weights_T, Vocabulary(0, 5, None), 0, targets
    )
    total.backward()
    exact_TV = logits_TV.double().requires_grad_()
    cross = torch.nn.functional.cross_entropy(exact_TV, labels_T, reduction="sum")
    pull_T = plain_divergence(exact_TV, targets.ids_TK, targets.probabilities_TK.double())
    (cross + 2 * pull_T.sum()).backward()
    assert hidden_TH.grad is not None and exact_TV.grad is not None
    torch.testing.assert_close(hidden_TH.grad.double(), exact_TV.grad, rtol=1e-4, atol=1e-5)
