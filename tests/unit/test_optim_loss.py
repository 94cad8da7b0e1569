"""Sums of the loss against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.model.vocab_loss import TokenLosses
from cptron.optim.loss import masked_sums


def token_losses(loss_BS: torch.Tensor, mask_BS: torch.Tensor) -> TokenLosses:
    """What the last stage returns for these losses."""
    return TokenLosses((loss_BS.float() * mask_BS).sum(), loss_BS.detach().float())


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32), st.booleans())
def test_sums_equal_plain_loops(batch: int, length: int, num_sources: int, seed: int, bf16: bool) -> None:
    """Total, count and sums by source; a masked token counts nowhere."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if bf16 else torch.float32
    loss_BS = (torch.rand(batch, length, generator=generator) * 20).to(dtype)
    mask_BS = (torch.rand(batch, length, generator=generator) < 0.6).float()
    source_B = torch.randint(num_sources, (batch,), generator=generator)
    total, count, by_source_K3 = masked_sums(token_losses(loss_BS, mask_BS), mask_BS, source_B, num_sources)
    expected = [[0.0, 0.0, 0.0] for _ in range(num_sources)]
    for row in range(batch):
        for column in range(length):
            if mask_BS[row, column]:
                expected[source_B[row]][0] += loss_BS[row, column].item()
                expected[source_B[row]][1] += 1
    assert by_source_K3.dtype == torch.float64
    assert by_source_K3.tolist() == [pytest.approx(sums, rel=1e-12) for sums in expected]
    assert count.item() == sum(tokens for _, tokens, _ in expected)
    assert not count.is_floating_point()
    assert total.item() == pytest.approx(sum(nats for nats, _, _ in expected), rel=1e-5)


def test_gradient_is_the_mask() -> None:
    """d(sum) / d(loss of a token) is 1 where it counts, 0 elsewhere; the sums by source carry no gradient."""
    loss_BS = torch.rand(2, 3, requires_grad=True)
    mask_BS = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    total, _, by_source_K3 = masked_sums(token_losses(loss_BS, mask_BS), mask_BS, torch.tensor([0, 0]), 2)
    assert not by_source_K3.requires_grad
    total.backward()
    assert loss_BS.grad is not None
    assert torch.equal(loss_BS.grad, mask_BS)


def test_the_cut_into_micro_batches_does_not_matter() -> None:
    """Sums add up: two halves give the whole."""
    loss_BS = torch.rand(6, 5, dtype=torch.float64).float()
    mask_BS = (torch.rand(6, 5) < 0.5).float()
    source_B = torch.tensor([0, 2, 1, 1, 0, 2])
    whole = masked_sums(token_losses(loss_BS, mask_BS), mask_BS, source_B, 3)
    halves = [
        masked_sums(token_losses(loss_BS[half], mask_BS[half]), mask_BS[half], source_B[half], 3)
        for half in (slice(3), slice(3, 6))
    ]
    torch.testing.assert_close(halves[0][2] + halves[1][2], whole[2], rtol=1e-12, atol=0)
    assert halves[0][1] + halves[1][1] == whole[1]
