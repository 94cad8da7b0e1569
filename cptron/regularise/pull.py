"""The three ways in which a weight is pulled towards where it started, element by element.

Place in the flow: `regulariser` applies them to the optimizer's stretches. Invariant: in place, in fp32, without
communication; a weight that is where it started stays there to the bit.

With t the weight, t0 where it started, r the rate, s the strength and F the Fisher information of the weight:

    L2-SP      t <- t0 + (t - t0) * (1 - r * s)          (Li et al. 2018, decoupled from the gradient)
    EWC        gradient += s * F * (t - t0)              (Kirkpatrick et al. 2017)
    proximal   t <- t0 + (t - t0) / (1 + r * s * F)      (the same penalty, by an implicit step of its own)
"""

from __future__ import annotations

import torch


@torch.no_grad()
def decay(main: torch.Tensor, start: torch.Tensor, rate: float, strength: float) -> None:
    """L2-SP's step."""
    main.add_(start - main, alpha=rate * strength)


@torch.no_grad()
def add_gradient(main: torch.Tensor, start: torch.Tensor, fisher: torch.Tensor, strength: float) -> None:
    """Add the gradient of EWC's penalty to that of `main`."""
    assert main.grad is not None
    main.grad.addcmul_(main - start, fisher.to(main.dtype), value=strength)


@torch.no_grad()
def proximal(
    main: torch.Tensor, start: torch.Tensor, fisher: torch.Tensor, rate: float, strength: float
) -> None:
    """The proximal step of EWC's penalty."""
    pull = fisher.float().mul(rate * strength)
    main.addcmul_(start - main, pull / (1 + pull))


@torch.no_grad()
def squares(
    main: torch.Tensor, start: torch.Tensor, fisher: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the elements of (t - t0)^2 and, where there is `fisher`, of F * (t - t0)^2; float64 scalars."""
    squared = (main - start).square_()
    total = squared.sum(dtype=torch.float64)
    if fisher is None:
        return total, torch.zeros_like(total)
    return total, squared.mul_(fisher).sum(dtype=torch.float64)
