"""A run through files gives the same curve under every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import assert_close, evals, steps
from safetensors.numpy import load_file
from tiny_world import LAYOUTS, ONE, STEPS, Layout, World

from cptron.checkpoint import layout as checkpoint_layout
from cptron.mixture.read_runs import read_runs


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, marks=() if layout in LAYOUTS[3:] else pytest.mark.more) for layout in LAYOUTS[1:]],
    ids=str,
)
def test_every_layout_gives_the_same_run(layout: Layout, whole_runs: dict[Layout, Path]) -> None:
    """Losses, gradient norms, validation losses and tokens by source of 20 fp32 steps, within 1e-4."""
    assert_close(steps(whole_runs[layout]), steps(whole_runs[ONE]))
    assert_close(evals(whole_runs[layout]), evals(whole_runs[ONE]))
    ledgers = [
        json.loads((checkpoint_layout.resolve(str(whole_runs[one])) / "state.json").read_text())["ledger"]
        for one in (layout, ONE)
    ]
    assert ledgers[0] == ledgers[1]


def test_the_run_learned_something(whole_runs: dict[Layout, Path]) -> None:
    """Equal curves would prove nothing on a run that stands still or sees one source only."""
    run = steps(whole_runs[ONE])
    assert [record["step"] for record in run] == list(range(1, STEPS + 1))
    first, *_, last = evals(whole_runs[ONE])
    assert last["valid/domain/loss_nats_per_token"] < first["valid/domain/loss_nats_per_token"] - 0.3
    shares = run[-1]["tokens/domain"] / run[-1]["tokens_total"]
    assert shares == pytest.approx(0.7, abs=0.02)
    assert run[-1]["tokens/domain"] + run[-1]["tokens/general"] == run[-1]["tokens_total"]
    # at most the last sample of each epoch is not full
    assert STEPS * 8 * 32 - 5 * 32 < run[-1]["tokens_total"] <= STEPS * 8 * 32


def test_evaluation_comes_before_the_first_update(whole_runs: dict[Layout, Path]) -> None:
    """The baseline is the first thing measured, then evaluations at the interval and after the last step."""
    kinds = [
        json.loads(line)["kind"] for line in (whole_runs[ONE] / "metrics.jsonl").read_text().splitlines()
    ]
    assert kinds[:3] == ["start", "eval", "step"]
    assert [record["step"] for record in evals(whole_runs[ONE])] == [0, 10, 20]


def test_data_order_is_of_the_seed(world: World, tmp_path: Path, whole_runs: dict[Layout, Path]) -> None:
    """Another seed draws other samples, so the equalities above depend on the order of the data."""
    other = steps(world.trained(tmp_path / "run", ONE, "run.seed=7", "train.steps=4"))
    ours, theirs = (run[0]["loss_nats_per_token"] for run in (other, steps(whole_runs[ONE])))
    assert ours != pytest.approx(theirs, rel=1e-4)


def test_a_run_is_a_point_of_a_mixture_law(world: World, whole_runs: dict[Layout, Path]) -> None:
    """What `cptron mixlaw` reads of a run: shares, tokens and losses of its last evaluation, size, and the baseline."""
    run = whole_runs[ONE]
    table = read_runs([run], every_evaluation=False)
    first, *_, last = evals(run)
    (point,), (baseline,) = table.points, table.baselines
    assert table.domains == ("domain", "general") and not table.notes
    assert point.shares == pytest.approx((0.7, 0.3))
    assert point.tokens == last["tokens_total"] == steps(run)[-1]["tokens_total"]
    for losses, record in ((point.losses, last), (baseline.losses, first)):
        assert losses == {name: record[f"valid/{name}/loss_nats_per_token"] for name in table.domains}
    assert point.losses["domain"] < baseline.losses["domain"]
    weights = load_file(world.hugging_face / "model.safetensors").values()
    assert point.params == baseline.params == sum(weight.size for weight in weights)
    assert len(read_runs([run], every_evaluation=True).points) == 2
