"""Pulling weights to where they started: minimisers in closed form, reached by the optimizer's own steps."""

from __future__ import annotations

import pytest
import torch

from cptron.config.schema_regularise import RegulariseConfig
from cptron.optim.sgd import SGD
from cptron.optim.stretch import Stretch
from cptron.regularise.regulariser import Anchor, Regulariser

RATE, STRENGTH = 0.2, 0.7
DIM = 6


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Curvature, minimum, start and Fisher information of a quadratic loss."""
    draw = torch.Generator().manual_seed(3)
    factor = torch.randn(DIM, DIM, generator=draw, dtype=torch.float64)
    curvature = factor @ factor.t() / DIM + 0.5 * torch.eye(DIM, dtype=torch.float64)
    minimum, start = torch.randn(2, DIM, generator=draw, dtype=torch.float64)
    fisher = torch.rand(DIM, generator=draw, dtype=torch.float64) * 3
    return curvature, minimum, start, fisher


def descend(config: RegulariseConfig, num_steps: int = 400) -> torch.Tensor:
    """Where plain gradient descent ends, with the regulariser around and inside its steps."""
    curvature, minimum, start, fisher = problem()
    main = start.clone().requires_grad_()
    inner = SGD([main], lr=RATE, momentum=0.0, weight_decay=0.0)
    stretch = Stretch("decoder.layers.0.mlp.linear_fc1.weight", main, main, 0, DIM, True, inner, 0)
    regulariser = Regulariser(config, [stretch], Anchor([start], [fisher] if config.ewc else []))
    for _ in range(num_steps):
        main.grad = curvature @ (main.detach() - minimum)
        regulariser.before_update()
        inner.step()
    return main.detach()


@pytest.mark.parametrize("form", ["gradient", "proximal"])
def test_ewc_ends_where_the_penalised_loss_is_least(form: str) -> None:
    """(H + s F)^-1 (H t1 + s F t0); 1e-6 of it."""
    curvature, minimum, start, fisher = problem()
    weighted = STRENGTH * torch.diag(fisher)
    expected = torch.linalg.solve(curvature + weighted, curvature @ minimum + weighted @ start)
    found = descend(RegulariseConfig(ewc=STRENGTH, ewc_form=form, fisher="F"))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_l2sp_ends_where_decay_and_gradient_meet() -> None:
    """A decoupled decay by r s of what the step left is a penalty of strength s / (1 - r s)."""
    curvature, minimum, start, _ = problem()
    strength = STRENGTH / (1 - RATE * STRENGTH) * torch.eye(DIM, dtype=torch.float64)
    expected = torch.linalg.solve(curvature + strength, curvature @ minimum + strength @ start)
    torch.testing.assert_close(descend(RegulariseConfig(l2sp=STRENGTH)), expected, rtol=0, atol=1e-6)


def test_a_strong_pull_is_stable_and_nothing_moves_what_has_no_gradient() -> None:
    """The proximal step at any strength; and a weight that stands where it started stays there to the bit."""
    _, _, start, _ = problem()
    found = descend(RegulariseConfig(ewc=1e9, ewc_form="proximal", fisher="F"), 50)
    torch.testing.assert_close(found, start, rtol=0, atol=1e-6)
    main = start.float().clone().requires_grad_()
    inner = SGD([main], lr=RATE, momentum=0.0, weight_decay=0.0)
    stretch = Stretch("output_layer.weight", main, main, 0, DIM, True, inner, 0)
    config = RegulariseConfig(l2sp=0.3, ewc=0.3, ewc_form="proximal", fisher="F")
    Regulariser(config, [stretch], Anchor([start.float()], [torch.ones(DIM)]))
    main.grad = torch.zeros(DIM)
    inner.step()
    assert torch.equal(main.detach(), start.float())
