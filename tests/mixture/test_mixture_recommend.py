"""The recommended mixture against answers known in closed form, and the critical ratio."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from mixture_world import (
    DCPT_DOMAIN_SHARES,
    DCPT_GENERAL_BEFORE,
    DCPT_GENERAL_LOSSES,
    inputs_of,
    jsonl_table,
    replay_table,
    two_domains,
)
from scipy.optimize import linprog

from cptron.errors import ConfigError, DataError
from cptron.mixture.bound import Bound, baseline_of, parse_bound
from cptron.mixture.critical import critical_ratio
from cptron.mixture.fit import FitOptions, fit_table
from cptron.mixture.fit_file import MixtureFit
from cptron.mixture.predict import scalars_for
from cptron.mixture.read_points import read_points
from cptron.mixture.recommend import Recommendation, recommend


def fit_of(path: Path, law: str, losses: tuple[str, ...] = ("old", "new"), draws: int = 60) -> MixtureFit:
    roles = {name: () for name in losses}
    return fit_table(read_points(path), FitOptions(law, roles, "old", "new", draws, 0))


def asked(fit: MixtureFit, bound: Bound, baseline: float, **scalars: float) -> Recommendation:
    return recommend(fit, scalars_for(fit, scalars, extrapolate=False), bound, baseline, extrapolate=False)


def test_d_cpt_table_5_end_to_end(tmp_path: Path) -> None:
    """The published losses, a new loss that falls with its share, and the bound of 3 %."""
    inputs = two_domains([1 - share for share in DCPT_DOMAIN_SHARES])
    losses = {"old": np.array(DCPT_GENERAL_LOSSES), "new": 1 + 0.2 * inputs.shares[:, 1] ** -0.5}
    path = jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new"), losses)
    found = asked(fit_of(path, "d-cpt"), Bound(percent=3), DCPT_GENERAL_BEFORE)
    assert found.shares[1] == pytest.approx(0.924, abs=0.002)
    assert found.low[1] <= 0.924 <= found.high[1]
    assert not found.at_edge


def test_replay_grid_answers_as_its_curve_does(tmp_path: Path) -> None:
    """Old loss 1.6 is crossed between replay 10 and 25 % in both seeds: nowhere else may the answer be."""
    fit = fit_of(replay_table(tmp_path / "a.csv"), "d-cpt")
    found = asked(fit, Bound(nats=1.6 - 1.3295), baseline_of(fit, 119000.0, 1.3295))
    assert 0.10 < found.shares[0] < 0.25
    assert found.low[0] < found.shares[0] < found.high[0]
    assert found.low[0] == pytest.approx(1 - found.high[1])


def test_bound_that_nothing_keeps_and_that_everything_keeps(tmp_path: Path) -> None:
    """Said, not rounded to an end of the range."""
    fit = fit_of(replay_table(tmp_path / "a.csv"), "d-cpt")
    nothing = asked(fit, Bound(nats=0.01), 1.33)
    assert nothing.shares == [] and nothing.none_share == 1.0
    assert nothing.closest == pytest.approx([0.5, 0.5])
    everything = asked(fit, Bound(nats=5.0), 1.33)
    assert everything.at_edge and everything.shares == pytest.approx([0.0, 1.0])


def test_three_domains_meet_the_bound(tmp_path: Path) -> None:
    """The best mixture is known exactly: it is a linear problem over the measured mixtures."""
    shares = np.random.default_rng(1).dirichlet(np.ones(3), 40)
    inputs = inputs_of(shares)
    losses = {"old": 1 + np.exp(-3 * shares[:, 0]), "new": 1 + np.exp(-2 * shares[:, 1] - shares[:, 2])}
    path = jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new", "code"), losses)
    least_old = math.log(1 / 0.4) / 3  # where old is 1.4
    exact = linprog(
        -(2 * shares[:, 1] + shares[:, 2]), [-shares[:, 0]], [-least_old], np.ones((1, 40)), [1.0]
    )
    for law in ("mixing", "regmix"):
        found = asked(fit_of(path, law, draws=40), Bound(nats=0.1), 1.3)
        assert math.fsum(found.shares) == pytest.approx(1)
        assert found.shares == pytest.approx(list(exact.x @ shares), abs=0.03)
        assert np.all(np.array(found.low) <= np.array(found.high))


def test_mean_of_the_best_where_it_is_better(tmp_path: Path) -> None:
    """Of eight domains the even mixture is best; every simulated one is beside it, and their mean is closer."""
    shares = np.random.default_rng(1).dirichlet(np.full(8, 0.3), 90)
    losses = {"old": 2 - 0.1 * shares[:, 0], "new": 4 - np.sqrt(shares + 0.01).sum(axis=1)}
    path = jsonl_table(tmp_path / "t.jsonl", inputs_of(shares), ("old", "new", *"cdefgh"), losses)
    found = asked(fit_of(path, "regmix", draws=40), Bound(nats=0.2), 2.0)
    assert found.shares == pytest.approx([1 / 8] * 8, abs=0.035)


def test_critical_ratio_grows_as_the_law_says(tmp_path: Path) -> None:
    """Curves of the old loss made so that the ratio is 0.02 T^0.25 in every mixture: found, and its power law too."""
    tokens = np.geomspace(1e6, 1e8, 9)
    ratios = [0.3, 0.5, 0.7, 0.9, 1.1]
    rows, old = [], []
    for ratio in ratios:
        for count in tokens:
            rows.append(ratio)
            # rises by the bound, 0.05, exactly where ratio = 0.02 T^0.25
            old.append(2.0 + 0.05 + 0.1 * (ratio - 0.01 * count**0.25))
    shares = [[1 - r / 2, r / 2] for r in rows]
    inputs = inputs_of(shares, tokens=np.tile(tokens, len(ratios)))
    losses = {"old": np.array(old), "new": 1 + inputs.tokens**-0.2}
    fit = fit_of(jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new"), losses), "cmr-tokens", draws=40)
    for count in (2e7, 5e7):
        found = critical_ratio(fit, count, 2.05)
        assert found.ratio == pytest.approx(0.01 * count**0.25 / 2, abs=2e-3)
        assert not found.extrapolated
    assert found.law_rmse < 2e-3
    beta, alpha, s = found.law
    assert alpha * 3e7**s + beta == pytest.approx(0.01 * 3e7**0.25 / 2, abs=3e-3)
    beyond = critical_ratio(fit, 1.5e8, 2.05)
    assert beyond.extrapolated
    assert beyond.ratio == pytest.approx(0.01 * 1.5e8**0.25 / 2, abs=0.02)


def test_critical_ratio_at_the_ends(tmp_path: Path) -> None:
    """All mixtures within the bound, and none."""
    tokens = np.geomspace(1e6, 1e8, 9)
    shares = [[1 - r, r] for r in (0.2, 0.5, 0.8) for _ in tokens]
    inputs = inputs_of(shares, tokens=np.tile(tokens, 3))
    losses = {"old": 2 + inputs.shares[:, 1] + inputs.tokens**-0.3, "new": 1 + inputs.tokens**-0.2}
    fit = fit_of(jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new"), losses), "cmr-tokens", draws=40)
    assert math.isnan(critical_ratio(fit, 1e7, 2.0).ratio)
    assert critical_ratio(fit, 1e7, 2.0).none_share == 1.0
    assert critical_ratio(fit, 1e7, 4.0).ratio == pytest.approx(0.8)
    assert critical_ratio(fit, 1e7, 4.0).at_edge
    with pytest.raises(DataError, match="too few token counts to extrapolate"):
        critical_ratio(fit, 1e9, 4.0)


@pytest.mark.parametrize(
    ("nats", "percent", "limit"),
    [("0.05", None, 2.05), (None, "3%", 2.06), (None, "3", 2.06), (None, None, 2.05)],
)
def test_bounds(nats: str | None, percent: str | None, limit: float) -> None:
    assert parse_bound(nats, percent).limit(2.0) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("nats", "percent"),
    [("0.05", "3%"), ("3%", None), ("0", None), ("-1", None), ("nan", None), (None, "inf"), (None, "")],
)
def test_bounds_that_are_none(nats: str | None, percent: str | None) -> None:
    with pytest.raises(ConfigError, match="--max-old-increase"):
        parse_bound(nats, percent)


def test_baseline_of_the_asked_size(tmp_path: Path) -> None:
    """Each size of model starts from its own loss; what was never measured must be given."""
    first = [{"tokens": 0, "params": size, "loss/old": loss} for size, loss in ((1e8, 2.2), (1e9, 1.9))]
    grid = [(r, n) for r in (0.05, 0.1, 0.2, 0.4) for n in (1e8, 1e9)]
    inputs = inputs_of([[r, 1 - r] for r, _ in grid], params=[n for _, n in grid])
    losses = {"old": 1 + 0.2 * (inputs.shares[:, 0] + 0.01) ** -0.3 + 1e3 * inputs.params**-0.4}
    path = jsonl_table(tmp_path / "t.jsonl", inputs, ("old", "new"), losses, first=first)
    fit = fit_of(path, "d-cpt", losses=("old",))
    assert [baseline_of(fit, size, None) for size in (1e8, 1e9)] == [2.2, 1.9]
    assert baseline_of(fit, 4e8, 2.0) == 2.0
    with pytest.raises(DataError, match=r"2 losses of old before training, and none for 4e.08 parameters"):
        baseline_of(fit, 4e8, None)
