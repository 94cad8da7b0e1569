"""Every law: published numbers, parameters found again, and limits that must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture_world import (
    CMR_LOSSES,
    CMR_OF_TOKENS,
    CMR_PERCENT,
    DCPT_DOMAIN_SHARES,
    DCPT_GENERAL_BEFORE,
    DCPT_GENERAL_LOSSES,
    inputs_of,
    two_domains,
)

from cptron.mixture.laws.d_cpt import DCPTLaw
from cptron.mixture.laws.exponential import ExponentialLaw
from cptron.mixture.laws.law import Law
from cptron.mixture.laws.power import PowerLaw, TwoPowers
from cptron.mixture.laws.registry import settings_of, stored_law
from cptron.mixture.laws.ridge import RidgeLaw
from cptron.mixture.points import Array, Inputs

MIXTURES = inputs_of(np.random.default_rng(5).dirichlet(np.ones(3), 40))
TOKENS = inputs_of([[0.5, 0.5]] * 12, tokens=np.geomspace(1e7, 1e9, 12))
GRID = inputs_of(
    [[r, 1 - r] for r in (0.0, 0.05, 0.2, 0.5, 0.8, 1.0) for _ in range(9)],
    tokens=np.tile(np.repeat([1e8, 1e9, 1e10], 3), 6),
    params=np.tile([1e8, 1e9, 4e9], 18),
)


def fitted(law: Law, inputs: Inputs, losses: Array, seed: int = 0) -> Array:
    return law.fit(inputs, losses, np.random.default_rng(seed))


def test_cmr_table_at_25_percent() -> None:
    """Fitted to four published shares, the law says at a fourth what it is reported to say. Losses that are rounded to
    four digits leave it open by 0.00006."""
    law = PowerLaw((0,))
    for losses, expected in CMR_LOSSES.values():
        inputs = two_domains([percent / 100 for percent in CMR_PERCENT])
        parameters = fitted(law, inputs, np.array(losses))
        assert law.values(parameters, two_domains([0.25]))[0] == pytest.approx(expected, abs=1.5e-4)


def test_cmr_ratio_at_20_billion_tokens() -> None:
    """R_CMR(T) with the published parameters, T in the paper's unit."""
    law = PowerLaw(())
    for (alpha, s, beta), expected in CMR_OF_TOKENS.values():
        value = law.values(np.array([beta, alpha, s]), inputs_of([[0.5, 0.5]], tokens=100.0))
        assert value[0] == pytest.approx(expected, abs=6e-4)


def test_d_cpt_table_5() -> None:
    """The general loss stays within 3 % up to a domain share of 0.924."""
    law = DCPTLaw((1,), ())
    inputs = two_domains(DCPT_DOMAIN_SHARES)
    parameters = fitted(law, inputs, np.array(DCPT_GENERAL_LOSSES))
    shares = np.linspace(0.9, 1.0, 10001)
    within = law.values(parameters, two_domains(list(shares))) <= 1.03 * DCPT_GENERAL_BEFORE
    assert shares[within].max() == pytest.approx(0.924, abs=0.002)


TRUE: list[tuple[Law, Inputs, list[float]]] = [
    (PowerLaw((0,)), two_domains([0.1, 0.2, 0.33, 0.5, 0.75, 1.0]), [1.2, 0.9, -0.4]),
    (PowerLaw((0,)), two_domains([0.1, 0.2, 0.33, 0.5, 0.75, 1.0]), [2.9, -0.4, 0.2]),
    (PowerLaw(()), TOKENS, [0.3, 12.0, -0.2]),
    (
        DCPTLaw((0,), ()),
        two_domains([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1]),
        [1.5, 0.1, 0.6, 0.02],
    ),
    (DCPTLaw((0,), ("tokens", "params")), GRID, [1.3, 0.05, 60.0, 900.0, 0.7, 0.03, 0.25, 0.4, 0.33]),
    (ExponentialLaw(("a", "b", "c")), MIXTURES, [1.1, 0.8, -1.5, 2.0]),
]


@pytest.mark.parametrize(("law", "inputs", "true"), TRUE, ids=lambda value: getattr(value, "formula", ""))
def test_parameters_are_found_again(law: Law, inputs: Inputs, true: list[float]) -> None:
    """From exact losses. What counts is the law; the parameters themselves, where they are well determined."""
    assert len(true) == len(law.parameters)
    losses = law.values(np.array(true), inputs)
    parameters = fitted(law, inputs, losses)
    assert law.values(parameters, inputs) == pytest.approx(losses, abs=2e-5)
    if len(true) < 9:
        assert parameters == pytest.approx(true, rel=0.02)


def test_noise_moves_parameters_by_what_it_should() -> None:
    """Of 40 fits to noisy losses the mean is the truth within three standard errors, and the spread is about the one
    that the linearised problem predicts."""
    law, inputs, true = PowerLaw((0,)), two_domains(list(np.linspace(0.1, 1, 20))), np.array([1.2, 0.9, -0.4])
    exact, rng, sigma = law.values(true, inputs), np.random.default_rng(3), 0.003
    found = np.array([fitted(law, inputs, exact + sigma * rng.standard_normal(20)) for _ in range(40)])
    steps = np.eye(3) * 1e-6
    jacobian = np.array([(law.values(true + step, inputs) - exact) / 1e-6 for step in steps]).T
    spread = sigma * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    assert np.all(np.abs(found.mean(axis=0) - true) < 3 * spread / np.sqrt(40) + 0.1 * spread)
    assert np.all((found.std(axis=0) > 0.6 * spread) & (found.std(axis=0) < 1.5 * spread))


def test_general_loss_that_rises_and_recovers() -> None:
    """Two powers describe what one cannot."""
    x = TOKENS.tokens / 1e8
    losses = 2.0 + 0.3 * x**-0.8 - 0.5 * x**-1.6
    two, one = TwoPowers(), PowerLaw(())
    errors = [np.abs(law.values(fitted(law, TOKENS, losses), TOKENS) - losses).max() for law in (two, one)]
    assert errors[0] < 1e-3 < 20e-3 < errors[1]
    assert fitted(two, TOKENS, losses)[3] > fitted(two, TOKENS, losses)[4]


def test_cross_domain_d_cpt() -> None:
    """Five domains, each with a K: the law fitted to four of them predicts the fifth."""
    law = DCPTLaw((0,), ("learnability",))
    shares = [0.05, 0.1, 0.25, 0.5, 1.0]
    inputs = inputs_of(
        [[r, 1 - r] for _ in range(5) for r in shares], learnability=np.repeat([0.4, 0.6, 0.8, 1.0, 1.4], 5)
    )
    losses = law.values(np.array([0.8, 0.1, 0.5, 0.6, 0.05, 0.9]), inputs)
    out = inputs.learnability == 0.8
    parameters = fitted(law, inputs.take(~out), losses[~out])
    assert law.values(parameters, inputs.take(out)) == pytest.approx(losses[out], abs=5e-4)


@given(
    coefficients=st.lists(st.floats(0, 5), min_size=4, max_size=4),
    exponents=st.lists(st.floats(0.01, 3), min_size=4, max_size=4),
    epsilon=st.floats(1e-4, 0.5),
    share=st.floats(0, 1),
    factor=st.floats(1.01, 100),
)
@settings(max_examples=100)
def test_d_cpt_never_rises_with_tokens_or_size(
    coefficients: list[float], exponents: list[float], epsilon: float, share: float, factor: float
) -> None:
    """For all parameters within the bounds."""
    law = DCPTLaw((0,), ("tokens", "params"))
    gamma, alpha, eta, beta = exponents
    parameters = np.array([*coefficients, gamma, epsilon, alpha, eta, beta])
    base = law.values(parameters, inputs_of([[share, 1 - share]], 1e9, 1e9))
    for tokens, params in ((1e9 * factor, 1e9), (1e9, 1e9 * factor)):
        assert law.values(parameters, inputs_of([[share, 1 - share]], tokens, params)) <= base * (1 + 1e-12)


@pytest.mark.parametrize(("law", "inputs", "true"), TRUE, ids=lambda value: getattr(value, "formula", ""))
def test_a_fit_depends_on_data_and_seed_only(law: Law, inputs: Inputs, true: list[float]) -> None:
    """To the last bit."""
    losses = law.values(np.array(true), inputs) + 0.01 * np.random.default_rng(1).standard_normal(len(inputs))
    assert fitted(law, inputs, losses, 7).tolist() == fitted(law, inputs, losses, 7).tolist()


def test_no_value_at_a_share_of_zero() -> None:
    """A negative power of 0 is infinite, and said so; D-CPT is finite there."""
    assert PowerLaw((0,)).values(np.array([1.0, 1.0, -0.5]), two_domains([0.0]))[0] == np.inf
    assert np.isfinite(DCPTLaw((0,), ()).values(np.array([1.0, 0.1, 0.5, 0.01]), two_domains([0.0]))[0])


@pytest.mark.parametrize(
    "law",
    [
        PowerLaw((0, 1)),
        PowerLaw(()),
        TwoPowers(),
        DCPTLaw((1,), ("tokens",)),
        ExponentialLaw(("a", "b")),
        RidgeLaw(("a", "b")),
    ],
    ids=lambda law: type(law).__name__,
)
def test_a_stored_law_is_the_law(law: Law) -> None:
    """Its settings, as JSON, give it back."""
    assert stored_law(settings_of(law), ["a", "b"]) == law
