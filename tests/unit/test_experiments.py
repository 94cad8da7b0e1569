"""The experiments: their page and verdicts follow from the numbers on record, and the verdicts can go either way."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptron.config.check import check_config
from cptron.data.windows import SetFacts
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.evaluation import (
    BASE,
    FOLDER,
    EvaluatedSet,
    Evaluation,
    evaluation_path,
    write_evaluation,
)
from examples.experiments import claims, collect, execute, plan, plots
from examples.experiments.page import page
from examples.experiments.run import DOCS, RESULTS, to_text

ROOT = Path(__file__).parents[2]
WINDOWS, TOKENS = 20, 10
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments' paths are those from the top of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def recorded() -> Json:
    """Results on record."""
    found: Json = json.loads((ROOT / RESULTS).read_text())
    return found


# --- what is on record --------------------------------------------------------------------------------------------


def test_verdicts_follow_from_the_raw_numbers(recorded: Json) -> None:
    """All of them, to the digit."""
    assert claims.judged(recorded["runs"]) == recorded["claims"]
    assert to_text(recorded) == (ROOT / RESULTS).read_text()


def test_page_and_plots_are_those_of_the_results(recorded: Json) -> None:
    """Nothing was written by hand, and no plot is left over."""
    assert page(recorded) == (ROOT / DOCS / "README.md").read_text()
    made = plots.charts(recorded)
    assert {path.name for path in (ROOT / DOCS).glob("*.svg")} == set(made)
    for name, content in made.items():
        assert content == (ROOT / DOCS / name).read_text()


def test_record_has_every_trial_as_planned(recorded: Json) -> None:
    """The runs of an experiment differ in share, rate and seed alone, and have seen equal numbers of tokens."""
    planned = {trial.name: trial for trial in plan.trials()}
    names = [run["name"] for run in recorded["runs"]]
    assert names == [name for name in planned if name not in recorded["not_run"]]
    assert {name for name in planned if name.startswith("vietnamese")} <= set(names), (
        "the main table is whole"
    )
    for run in recorded["runs"]:
        trial = planned[run["name"]]
        assert run["command"][3:] == plan.overrides_of(trial)
        assert len(run["training_loss"]) == plan.loaded(trial).config.train.steps
    for experiment in plan.EXPERIMENTS:
        own = [run for run in recorded["runs"] if run["experiment"] == experiment.name]
        assert len({sum(run["tokens"].values()) for run in own}) == 1
        assert len({json.dumps(run["base"]) for run in own}) == 1, "all have the same base"


def test_final_loss_is_that_of_the_last_evaluation(recorded: Json) -> None:
    """Losses by window, of which the verdicts are made, are those that the trainer has reported."""
    for run in recorded["runs"]:
        last = run["evaluations"][-1]
        for suite, key in (("old", plan.REPLAYED), ("new", run["experiment"])):
            assert claims.loss(run, suite) == pytest.approx(
                last[f"valid/{key}/loss_nats_per_token"], abs=1e-5
            )
        assert claims.change(run, "old").estimate == pytest.approx(
            last["forgetting/old/change_nats"], abs=1e-5
        )


# --- the plan -----------------------------------------------------------------------------------------------------


def test_every_trial_is_a_configuration_that_can_be_run() -> None:
    """Each passes all rules, in a directory of its own, with the share of replay that its name says."""
    trials = plan.trials()
    assert (
        len({trial.name for trial in trials}) == len({plan.run_dir(trial) for trial in trials}) == len(trials)
    )
    for trial in trials:
        config = plan.loaded(trial).config
        check_config(config, 1)
        shares = {source.role: source.token_share for source in config.data.sources}
        assert shares.get("replay", 0.0) == pytest.approx(trial.percent / 100)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert bool(config.checkpoint.every_steps) is trial.keeps


def test_finished_run_is_known_until_its_data_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By configuration, tokens and base; a run that has not ended is not done."""
    trial = plan.Trial("vietnamese", 5)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    data = plan.loaded(trial).config.data
    files = [Path(f"{item.path}.bin") for items in (data.sources, data.valid) for item in items]
    for path in (*files, plan.MODEL / "complete.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"as it was")
    plan.RUNS.mkdir(parents=True)
    note = plan.RUNS / f"{trial.name}.json"
    assert not execute.is_done(trial)
    started = {"fingerprint": execute.fingerprint(trial), "commit": "c"}
    note.write_text(json.dumps(started))
    assert not execute.is_done(trial)
    note.write_text(json.dumps({**started, "wall_s": 1.0}))
    assert execute.is_done(trial)
    assert not execute.is_done(plan.Trial("vietnamese", 5, rate=0.3))
    files[0].write_bytes(b"another")
    assert not execute.is_done(trial)


# --- verdicts on runs that are made up ----------------------------------------------------------------------------


def evaluated(old: float, new: float) -> Json:
    """An evaluation with these losses in nats per token, about which its windows vary alike."""
    noise = np.linspace(-0.5, 0.5, WINDOWS)
    return {
        suite: {
            "suite": suite,
            "nats": [float(TOKENS * (loss + shift)) for shift in noise],
            "tokens": [TOKENS] * WINDOWS,
        }
        for suite, loss in (("old", old), ("new", new))
    }


def made_up(percent: int, old: float, new: float, rate: float = 1.0, alarms: tuple[int, ...] = ()) -> Json:
    """A run from losses of 3 and 3 to these."""
    verdicts = [{"step": step, "finding": "alarm", "action": "alert", "why": ""} for step in alarms]
    return {
        "name": f"new_{percent}_{rate}",
        "experiment": "new",
        "replay_percent": percent,
        "rate": rate,
        "lr": 1e-3 * rate,
        "epsilon_nats": 0.05,
        "base": evaluated(3.0, 3.0),
        "last": evaluated(old, new),
        "verdicts": verdicts,
        "selection": None,
    }


def candidate(step: int | None, old: float, chosen: bool = False, alpha: float | None = None) -> Json:
    """As `cptron select` records it."""
    return {
        "step": step,
        "alpha": alpha,
        "old_change_nats": [old - 0.01, old - 0.02, old],
        "new_change_nats": [-0.1, -0.2, 0.0],
        "is_chosen": chosen,
        "is_within_epsilon": old <= 0.05,
    }


def chosen_from(*candidates: Json, grid: tuple[Json, ...] = ()) -> Json:
    """What `cptron select` recorded of a run."""
    return {"candidates": list(candidates), "grid": list(grid), "grid_of": "step_48" if grid else None}


def as_claimed() -> list[Json]:
    """Runs that show everything."""
    first = made_up(0, 3.40, 2.000, alarms=(32,))
    first["selection"] = chosen_from(candidate(16, 0.04, chosen=True), candidate(48, 0.4))
    rest = [made_up(5, 3.2, 2.010), made_up(25, 3.02, 2.05), made_up(0, 3.1, 2.3, rate=plan.LOW_RATE)]
    return [first, *rest]


def holding(runs: list[Json]) -> list[bool]:
    """Verdicts in order: replay keeps, little is cheap, low rate, monitor, selector."""
    return [claim["holds"] for claim in claims.judged(runs)]


def test_claims_hold_where_they_should() -> None:
    """All five, with the differences that were made up."""
    found = claims.judged(as_claimed())
    assert [claim["holds"] for claim in found] == [True] * 5
    steps, cheap = found[0]["numbers"], found[1]["numbers"]
    assert [step["nats"][0] for step in steps] == pytest.approx([-0.2, -0.18])
    assert cheap[0] == pytest.approx(0.01) and cheap[1] <= cheap[0] <= cheap[2]


@pytest.mark.parametrize(
    ("which", "position", "change"),
    [
        (0, 2, {"last": evaluated(3.2, 2.05)}),  # old text is no better with more replay
        (1, 1, {"last": evaluated(3.2, 2.016)}),  # 5 % costs too much
        (2, 3, {"last": evaluated(3.45, 2.3)}),  # the low rate forgets more
        (2, 3, {"last": evaluated(3.1, 1.9)}),  # or learns more
        (3, 0, {"verdicts": []}),  # no alarm without replay
        (3, 2, {"verdicts": [{"step": 16, "finding": "alarm"}]}),  # an alarm with 25 %
        (
            4,
            0,
            {"selection": chosen_from(candidate(16, 0.2), candidate(48, 0.4))},
        ),  # none within epsilon
        (4, 0, {"selection": chosen_from(candidate(48, 0.01, chosen=True))}),  # nothing to do better
    ],
)
def test_each_claim_can_fail_alone(which: int, position: int, change: Json) -> None:
    """Whatever is changed, the other verdicts stay."""
    runs = copy.deepcopy(as_claimed())
    runs[position] |= change
    expected = [True] * 5
    expected[which] = False
    assert holding(runs) == expected


def test_choice_among_interpolations_counts() -> None:
    """Where no checkpoint is within epsilon and one of them with the base is."""
    runs = as_claimed()
    grid = (candidate(48, 0.4), candidate(None, 0.03, chosen=True, alpha=0.5))
    runs[0]["selection"] = chosen_from(candidate(16, 0.2), candidate(48, 0.4), grid=grid)
    found = claims.judged(runs)[4]
    assert found["holds"] and found["numbers"][0]["chosen"] == "alpha 0.5"
    runs[0]["selection"]["grid"][1]["is_chosen"] = False
    assert not claims.judged(runs)[4]["holds"]


def test_claims_without_their_runs_are_not_made() -> None:
    """No verdict on what was not measured."""
    found = claims.judged([made_up(1, 3.3, 2.0), made_up(25, 3.1, 2.1)])
    assert len(found) == 1 and "old text" in found[0]["claim"]
    assert claims.judged([made_up(0, 3.3, 2.0)]) == []


def test_page_says_where_old_text_gained_without_replay(recorded: Json) -> None:
    """Only of runs that show it."""
    remark = "even without replay"
    changed = copy.deepcopy(recorded)
    for run in changed["runs"]:
        windows = run["last"][plan.REPLAYED]["nats"]
        run["last"][plan.REPLAYED]["nats"] = [nats + 500.0 for nats in windows]
    assert remark not in page(changed)
    changed["runs"][0]["last"] = copy.deepcopy(changed["runs"][0]["base"])
    kept = changed["runs"][0]["last"][plan.REPLAYED]["nats"]
    changed["runs"][0]["last"][plan.REPLAYED]["nats"] = [nats - 5.0 for nats in kept]
    assert remark in page(changed)


# --- files --------------------------------------------------------------------------------------------------------


def test_numbers_of_a_run_are_those_in_its_files(tmp_path: Path) -> None:
    """Losses by window from the evaluations kept, the rest from the records."""
    facts = SetFacts(windows="w")
    sets = [
        {
            name: EvaluatedSet(name, facts, np.array([30.0, 31.0 + shift]), np.array([10, 9]))
            for name in ("old", "new")
        }
        for shift in (0.0, 2.5)
    ]
    (tmp_path / FOLDER).mkdir()
    write_evaluation(tmp_path / FOLDER / BASE, Evaluation(0, 0, sets[0]).to_bytes())
    write_evaluation(evaluation_path(tmp_path, 2), Evaluation(2, 64, sets[1]).to_bytes())
    records = [
        {"kind": "step", "step": 2, "loss_nats_per_token": 2.5, "tokens/old": 16, "tokens/new": 48},
        {
            "kind": "eval",
            "step": 2,
            "tokens_total": 64,
            "valid/old/loss_nats_per_token": 3.0,
            "note": "no number",
        },
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = collect.numbers_of(tmp_path, 2)
    assert found["tokens"] == {"old": 16, "new": 48}
    assert found["last"]["old"] == {"suite": "old", "nats": [30.0, 33.5], "tokens": [10, 9]}
    assert claims.change(found, "old").estimate == pytest.approx(2.5 / 19)
    assert found["evaluations"] == [{"step": 2, "tokens_total": 64, "valid/old/loss_nats_per_token": 3.0}]
    assert found["verdicts"] == [] and found["selection"] is None


def test_plot_stands_alone(recorded: Json) -> None:
    """Well-formed, with every run's name and no reference to another file."""
    for content in plots.charts(recorded).values():
        texts = "".join(ElementTree.fromstring(content).itertext())
        assert "nats per token" in texts
        assert "href" not in content and "url(" not in content


def test_interval_is_the_paired_one() -> None:
    """What all windows have in common has no uncertainty; half of them apart has."""
    even, odd = made_up(0, 3.1, 3.0), made_up(1, 3.1, 3.0)
    odd["last"]["old"]["nats"][::2] = [nats + 2.0 for nats in odd["last"]["old"]["nats"][::2]]
    assert claims.change(even, "old") == Interval(*[pytest.approx(0.1)] * 3)
    between = claims.difference(even, odd, "old")
    assert between.low < between.estimate < between.high
    assert between.estimate == pytest.approx(0.1)
