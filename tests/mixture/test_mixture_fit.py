"""From a table to a fit: what is refused, what is left out, and what the replay grid says honestly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixture_world import NEW, OLD, REPLAY, inputs_of, jsonl_table, replay_table, two_domains

from cptron.errors import DataError
from cptron.mixture import left_out
from cptron.mixture.fit import FitOptions, fit_table
from cptron.mixture.fit_file import read_fit, write_fit
from cptron.mixture.laws.d_cpt import DCPTLaw
from cptron.mixture.laws.power import PowerLaw
from cptron.mixture.left_out import leave_out
from cptron.mixture.points import Array, Inputs
from cptron.mixture.predict import predict, scalars_for
from cptron.mixture.read_points import read_points

DOMAINS = ("old", "new")


def options(law: str, **changes: object) -> FitOptions:
    values = {"losses": {"old": (), "new": ()}, "old": "old", "new": "new", "draws": 40, "seed": 0} | changes
    return FitOptions(law, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 2])
def test_new_loss_of_the_replay_grid(seed: int) -> None:
    """The CMR form describes it within a thousandth, predicts what lies inside within three, and what lies beyond, half
    of the tokens replayed, ten times worse."""
    law, inputs, losses = PowerLaw((1,)), two_domains(REPLAY), np.array(NEW[seed])
    parameters = law.fit(inputs, losses, np.random.default_rng(0))
    assert np.sqrt(np.mean((law.values(parameters, inputs) - losses) ** 2)) < 1e-3
    found = leave_out(law, inputs, losses, DOMAINS, 0)
    assert found.inside_largest is not None and found.inside_largest < 3e-3
    assert found.edge_largest is not None and 0.01 < found.edge_largest < 0.03
    assert found.edge_at == "old=0.5 new=0.5"


@pytest.mark.parametrize("seed", [1, 2])
def test_old_loss_of_the_replay_grid_is_unknown_at_zero(seed: int) -> None:
    """The D-CPT form inside: within 0.06 nats. At no replay, left out: wrong by more than a fifth of a nat."""
    found = leave_out(DCPTLaw((0,), ()), two_domains(REPLAY), np.array(OLD[seed]), DOMAINS, 0)
    assert found.inside_largest is not None and found.inside_largest < 0.06
    assert found.edge_largest is not None and found.edge_largest > 0.2
    assert found.edge_at == "old=0 new=1"


def test_no_replay_is_refused_where_it_was_not_measured(tmp_path: Path) -> None:
    """And given where it was."""
    some = fit_table(read_points(replay_table(tmp_path / "some.csv", replay=REPLAY[1:])), options("d-cpt"))
    all_of_it = fit_table(read_points(replay_table(tmp_path / "all.csv")), options("d-cpt"))
    at = scalars_for(some, {}, extrapolate=False)
    with pytest.raises(DataError, match=r"share of old 0 is outside 0\.01 to 0\.5.*--extrapolate"):
        predict(some, at, [0.0, 1.0], extrapolate=False)
    named = predict(some, at, [0.0, 1.0], extrapolate=True)
    assert all("share of old 0 is outside 0.01 to 0.5" in one.outside for one in named)
    inside = predict(all_of_it, at, [0.0, 1.0], extrapolate=False)
    assert [one.outside for one in inside] == [[], []]
    assert inside[0].low < 2.44 < inside[0].high


def test_twins_are_left_out_together() -> None:
    """Two seeds a mixture: the error of a mixture left out is the one without both, however often it was measured."""
    law, once = PowerLaw((1,)), two_domains(REPLAY)
    twice = two_domains(REPLAY * 2)
    single = leave_out(law, once, np.array(NEW[1]), DOMAINS, 0)
    double = leave_out(law, twice, np.array(NEW[1] * 2), DOMAINS, 0)
    assert double.inside_largest == pytest.approx(single.inside_largest, rel=1e-3)


def test_evaluations_of_one_mixture_are_left_out_together() -> None:
    """Else the later evaluation would give the earlier one away."""
    shares = [[r, 1 - r] for r in (0.05, 0.1, 0.2, 0.4, 0.6) for _ in range(3)]
    inputs = inputs_of(shares, tokens=np.tile([1e8, 2e8, 4e8], 5))
    law = DCPTLaw((0,), ("tokens",))
    losses = law.values(np.array([1.5, 0.1, 30.0, 0.5, 0.02, 0.3, 0.3]), inputs)
    strange = np.arange(15) // 3 == 2  # the middle mixture is off by a tenth at all three times
    found = leave_out(law, inputs, losses + 0.1 * strange, DOMAINS, 0)
    assert found.inside_largest is not None and found.inside_largest > 0.08


def test_of_many_mixtures_several_are_left_out_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point is predicted once all the same, and by a fit that has not seen it."""
    inputs = two_domains(list(np.linspace(0.1, 1.0, 20)))
    losses = 1 + inputs.shares[:, 0] ** -0.4
    monkeypatch.setattr(left_out, "MOST_GROUPS", 5)
    fits: list[int] = []
    plain = PowerLaw.fit

    def counted(law: PowerLaw, rest: Inputs, *others: Any) -> Array:
        fits.append(len(rest))
        return plain(law, rest, *others)

    monkeypatch.setattr(PowerLaw, "fit", counted)
    losses[7] += 0.1
    found = leave_out(PowerLaw((0,)), inputs, losses, DOMAINS, 0)
    assert fits == [16] * 5
    assert found.inside_largest is not None and found.inside_largest == pytest.approx(0.1, rel=0.2)


def test_too_few_points(tmp_path: Path) -> None:
    """Parameters + 2 is enough, one less is not."""
    enough = read_points(replay_table(tmp_path / "a.csv", seeds=[1], replay=REPLAY[1:]))
    assert {one.num_points for one in fit_table(enough, options("cmr")).fits} == {5}
    few = read_points(replay_table(tmp_path / "b.csv", seeds=[1], replay=REPLAY[2:]))
    with pytest.raises(
        DataError, match="old has 4 points, the law cmr with its 3 parameters needs at least 5"
    ):
        fit_table(few, options("cmr"))
    with pytest.raises(
        DataError, match="old has 5 points, the law d-cpt with its 4 parameters needs at least 6"
    ):
        fit_table(enough, options("d-cpt"))


def test_repeated_runs_are_no_other_mixtures(tmp_path: Path) -> None:
    """Six points at three mixtures determine no four parameters."""
    table = read_points(replay_table(tmp_path / "a.csv", replay=REPLAY[3:]))
    with pytest.raises(
        DataError, match="old was measured at 3 different settings, the law d-cpt needs at least its 4"
    ):
        fit_table(table, options("d-cpt"))


def test_what_a_law_does_not_contain_must_not_vary(tmp_path: Path) -> None:
    """Tokens in a law of the mixture alone; a loss without its domain; a share of 0 in a power of it."""
    inputs = inputs_of(
        [[r, 1 - r] for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)], tokens=[1e8, 1e8, 1e8, 2e8, 2e8, 2e8]
    )
    losses = {
        "old": 2 - inputs.shares[:, 0],
        "new": 1 + inputs.shares[:, 0],
        "general": 2 - inputs.shares[:, 0],
    }
    table = read_points(jsonl_table(tmp_path / "t.jsonl", inputs, DOMAINS, losses))
    for law in ("cmr", "mixing", "regmix"):
        with pytest.raises(DataError, match=r"tokens from 1e\+08 to 2e\+08, the law .* is for one value"):
            fit_table(table, options(law))
    with pytest.raises(DataError, match="needs the share of the domain that general measures"):
        fit_table(table, options("d-cpt", losses={"general": ()}, old="general"))
    with pytest.raises(DataError, match="old was measured at a share of 0"):
        fit_table(read_points(replay_table(tmp_path / "z.csv")), options("cmr"))


def test_terms_of_d_cpt_are_those_that_vary(tmp_path: Path) -> None:
    """One number of tokens and one size: their terms are part of E, and nobody can ask for another."""
    fit = fit_table(read_points(replay_table(tmp_path / "a.csv")), options("d-cpt"))
    (old,) = [one for one in fit.fits if one.loss == "old"]
    assert old.law(fit.domains).parameters == ("E", "C", "gamma", "epsilon")
    with pytest.raises(DataError, match=r"--tokens 1e.08 is asked for, and it was measured at 7.68e.05 only"):
        scalars_for(fit, {"tokens": 1e8}, extrapolate=True)
    with pytest.raises(DataError, match="--learnability 1 is asked for, and it was recorded in no run"):
        scalars_for(fit, {"learnability": 1.0}, extrapolate=True)


def test_tokens_and_size_outside_are_refused(tmp_path: Path) -> None:
    """Unless extrapolation is named, and then every prediction says so."""
    law = DCPTLaw((0,), ("tokens", "params"))
    grid = [(r, d, n) for r in (0.05, 0.2, 0.5) for d in (1e8, 1e9) for n in (1e8, 4e8, 1e9)]
    shares, tokens, params = (
        [[r, 1 - r] for r, _, _ in grid],
        [d for _, d, _ in grid],
        [n for _, _, n in grid],
    )
    inputs: Inputs = inputs_of(shares, tokens, params)
    losses = law.values(np.array([1.3, 0.05, 60.0, 900.0, 0.7, 0.03, 0.25, 0.4, 0.33]), inputs)
    table = read_points(jsonl_table(tmp_path / "t.jsonl", inputs, DOMAINS, {"old": losses}))
    fit = fit_table(table, options("d-cpt", losses={"old": ()}, new=None))
    for given, said in (
        ({"tokens": 2e9, "params": 1e9}, "tokens 2e.09 is outside 1e.08 to 1e.09"),
        ({"tokens": 1e9, "params": 7e9}, "params 7e.09 is outside 1e.08 to 1e.09"),
    ):
        with pytest.raises(DataError, match=said):
            scalars_for(fit, given, extrapolate=False)
        at = scalars_for(fit, given, extrapolate=True)
        (one,) = predict(fit, at, [0.2, 0.8], extrapolate=True)
        assert len(one.outside) == 1
    with pytest.raises(DataError, match="--params must be given"):
        scalars_for(fit, {"tokens": 1e9}, extrapolate=False)


def test_a_file_is_the_fit(tmp_path: Path) -> None:
    """Written and read back, nothing is lost and nothing is rounded."""
    fit = fit_table(read_points(replay_table(tmp_path / "a.csv")), options("d-cpt"))
    write_fit(tmp_path / "fit.json", fit)
    assert read_fit(tmp_path / "fit.json") == fit
