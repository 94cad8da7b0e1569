"""The ridge against normal equations, brute force and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from mixture_world import inputs_of

from cptron.mixture.laws.ridge import PENALTIES, RidgeLaw, _Problem, features
from cptron.mixture.points import Array

DOMAINS = tuple("abcde")
SHARES = np.random.default_rng(2).dirichlet(np.full(5, 0.7), 60)


def losses_of(shares: Array, noise: float = 0.0) -> Array:
    """Something that is no linear function of the shares."""
    found = 2 + 0.5 * np.exp(-4 * shares[:, 0]) + 0.1 / (shares[:, 1] + 0.05) - 0.3 * shares[:, 2]
    return np.asarray(found + noise * np.random.default_rng(8).standard_normal(len(shares)))


def closed_form(raw: Array, losses: Array, penalty: float) -> Array:
    """Fitted values by the normal equations, written down once more."""
    centered = raw - raw.mean(axis=0)
    scaled = centered / centered.std(axis=0)
    gram = scaled.T @ scaled + penalty * len(raw) * np.eye(raw.shape[1])
    return np.asarray(losses.mean() + scaled @ np.linalg.solve(gram, scaled.T @ (losses - losses.mean())))


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_weights_are_those_of_the_normal_equations(penalty: float) -> None:
    raw, losses = features(SHARES), losses_of(SHARES, 0.02)
    parameters = _Problem(raw, losses).parameters(penalty)
    assert parameters[0] + raw @ parameters[1:] == pytest.approx(closed_form(raw, losses, penalty), abs=1e-9)


def test_penalty_has_the_least_error_of_points_left_out() -> None:
    """The shortcut by leverages is what leaving out each point says, with features scaled as with all points."""
    raw, losses = features(SHARES), losses_of(SHARES, 0.05)
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    design = np.concatenate([np.ones((60, 1)), scaled], axis=1)

    def left_out(penalty: float) -> float:
        total, ridge = 0.0, 60 * penalty * np.diag([0.0] + [1.0] * raw.shape[1])
        for i in range(60):
            kept = np.arange(60) != i
            weights = np.linalg.solve(design[kept].T @ design[kept] + ridge, design[kept].T @ losses[kept])
            total += float(design[i] @ weights - losses[i]) ** 2
        return total

    errors = [left_out(penalty) for penalty in PENALTIES]
    assert _Problem(raw, losses).best_penalty() == PENALTIES[int(np.argmin(errors))]
    assert _Problem(raw, losses)._left_out(PENALTIES[10]) == pytest.approx(errors[10], rel=1e-6)


def test_effective_parameters_are_the_trace() -> None:
    """Of the matrix from losses to fitted values: brought forth column by column."""
    raw, losses = features(SHARES), losses_of(SHARES, 0.05)
    penalty = _Problem(raw, losses).best_penalty()
    trace = sum(float(closed_form(raw, np.eye(60)[i], penalty)[i]) for i in range(60))
    assert RidgeLaw(DOMAINS).num_effective(inputs_of(SHARES), losses) == pytest.approx(trace, rel=1e-6)


def test_features_do_better_than_shares_alone() -> None:
    """On mixtures not seen, in the order of their losses: what RegMix is for."""
    law, seen, unseen = RidgeLaw(DOMAINS), SHARES[:40], SHARES[40:]
    parameters = law.fit(inputs_of(seen), losses_of(seen, 0.01), np.random.default_rng(0))
    linear = np.linalg.lstsq(seen, losses_of(seen, 0.01), rcond=None)[0]
    true = losses_of(unseen)
    ours, plain = law.values(parameters, inputs_of(unseen)), unseen @ linear

    def spearman(values: Array) -> float:
        ranks = [np.argsort(np.argsort(column)) for column in (values, true)]
        return float(np.corrcoef(*ranks)[0, 1])

    assert spearman(ours) > 0.95 > spearman(plain) or spearman(ours) > spearman(plain) + 0.02


def test_a_share_that_never_varies_gets_no_weight() -> None:
    """And breaks nothing."""
    shares = np.concatenate([0.5 * SHARES, np.full((60, 1), 0.5)], axis=1)
    law = RidgeLaw((*DOMAINS, "f"))
    parameters = law.fit(inputs_of(shares), losses_of(SHARES), np.random.default_rng(0))
    by_name = dict(zip(law.parameters, parameters, strict=True))
    assert [by_name[f"{kind}/f"] for kind in "uvw"] == [0.0, 0.0, 0.0]
    assert np.isfinite(parameters).all()
