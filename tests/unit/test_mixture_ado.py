"""ADO-style mixing: the law of losses against scipy's optimizer, the policy against the formulas written out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.mixture.ado import LEAST, MIN_POINTS, MOST_POINTS, Ado
from cptron.mixture.loss_law import HUBER_DELTA, Law, fit_law
from cptron.mixture.mixer import make_mixer

TOKENS = [1000 * n for n in range(1, 41)]


def cost(law: Sequence[float], points: Sequence[tuple[int, float]]) -> float:
    """Sum of Huber losses of log L, point by point; `law` is log beta, alpha, log eps."""
    log_beta, alpha, log_eps = law
    total = 0.0
    for tokens, loss in points:
        rest = abs(np.logaddexp(log_beta - alpha * math.log(tokens), log_eps) - math.log(loss))
        total += rest**2 / 2 if rest <= HUBER_DELTA else HUBER_DELTA * (rest - HUBER_DELTA / 2)
    return total


@pytest.mark.parametrize("law", [Law(0.5, 60.0, 1.5), Law(0.1, 6.0, 0.5), Law(0.79, 500.0, 3.0)])
def test_a_law_without_noise_is_found(law: Law) -> None:
    """Its speed is the derivative of its losses."""
    found = fit_law([(n, law.loss(n)) for n in TOKENS])
    assert (found.alpha, found.eps) == pytest.approx((law.alpha, law.eps), rel=2e-2, abs=1e-2)
    slope = (law.loss(20_000) - law.loss(20_200)) / 200
    assert found.speed(20_100) == pytest.approx(slope, rel=1e-2)


def test_a_noisy_law_is_as_good_as_that_of_l_bfgs() -> None:
    """From a grid of starts, in the parameters of the paper; with outliers, which Huber's loss bears."""
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(1)
    true = Law(0.4, 30.0, 1.2)
    points = [(n, true.loss(n) * math.exp(draw.normal(0, 0.01))) for n in TOKENS]
    points[7] = (points[7][0], points[7][1] * 1.5)
    starts = [(b, a, e) for b in (1.0, 4.0) for a in (0.2, 0.5) for e in (-1.0, 0.2)]
    limits = [(None, None), (0.0, 0.8), (None, None)]
    best = min(
        optimize.minimize(cost, start, (points,), method="L-BFGS-B", bounds=limits).fun for start in starts
    )
    found = fit_law(points)
    ours = cost((math.log(found.beta), found.alpha, math.log(max(found.eps, 1e-12))), points)
    assert ours <= best * (1 + 1e-2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**12), st.floats(0, 20)), min_size=1, max_size=12))
def test_any_losses_have_a_law(points: list[tuple[int, float]]) -> None:
    """Finite, and never rising."""
    law = fit_law(points)
    assert all(math.isfinite(value) and value >= 0 for value in (law.alpha, law.beta, law.eps))
    assert law.speed(points[-1][0]) >= 0


def test_the_policy_is_the_written_one() -> None:
    """Step by step, through JSON each time; the source that is still learned fast gains."""
    laws = {"fast": Law(0.6, 800.0, 1.0), "slow": Law(0.05, 2.0, 1.0), "noise": Law(0.0, 0.0, 4.6)}
    prior = {"fast": 0.2, "slow": 0.3, "noise": 0.5}
    state: dict[str, object] = {}
    average, credit = {}, {}
    for update in range(1, 13):
        mixer = Ado.from_dict(json.loads(json.dumps(state)))
        tokens = {name: 1000 * update for name in laws}
        losses = {name: law.loss(1000 * update) for name, law in laws.items()}
        policy = mixer.update(losses, tokens, prior)
        if update < MIN_POINTS:
            assert policy == prior
        else:
            gains = {
                name: prior[name]
                * math.sqrt(credit[name])
                * fit_law([(1000 * n, law.loss(1000 * n)) for n in range(1, update + 1)]).speed(tokens[name])
                for name, law in laws.items()
            }
            total = sum(gains.values())
            preferred = {name: max(LEAST, gain / total) for name, gain in gains.items()}
            room = 1 - sum(share for share in preferred.values() if share == LEAST)
            above = sum(share for share in preferred.values() if share > LEAST)
            preferred = {n: s if s == LEAST else s * room / above for n, s in preferred.items()}
            for name, share in policy.items():
                assert share == pytest.approx(0.1 * preferred[name] + 0.9 * average[name], rel=1e-9)
        mixer.follow(policy)
        for name, share in policy.items():
            average[name] = (average.get(name, 0.0) * (update - 1) + share) / update
            credit[name] = 0.1 * share + 0.9 * credit.get(name, share)
        state = mixer.to_dict()
    assert policy["fast"] > 0.25 and policy["noise"] < 0.47
    assert sum(policy.values()) == pytest.approx(1)


def test_a_source_that_comes_later_and_old_points() -> None:
    """A source of another stage has the prior's share until it has a law; points are thinned, not cut off."""
    points = [(100 * n, 2.0 + 1 / n) for n in range(1, MOST_POINTS + 1)]
    mixer, prior = Ado({"a": list(points)}), {"a": 0.4, "b": 0.6}
    assert mixer.update({"a": 2.0, "b": 3.0}, {"a": 10**5, "b": 100}, prior) == prior
    assert mixer.points == {"a": [*points[1::2], (10**5, 2.0)], "b": [(100, 3.0)]}
    mixer.follow(prior)
    state = mixer.to_dict()
    assert make_mixer("ado", state).to_dict() == state
    for change in (
        {"points": 3},
        {"average": {"a": math.nan}},
        {"points": {"a": [[0, 1.0]]}},
        {"policies": "x"},
    ):
        with pytest.raises(ValueError, match="state of ado"):
            make_mixer("ado", state | change)
