"""Stages of a real run: blends, sequence length, batch and rate change where they should, under every layout and after
a kill; and the accounts by source are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import assert_close, records, steps
from tiny_world import ONE, SHORT, Layout, World, interrupted

from cptron.cli import main
from cptron.config.load import load_config
from cptron.data.audit import audit
from cptron.report.rates import planned_curve

STAGES = (
    "data.stages=[{until_tokens: 700, shares: {domain: 1}}, "
    "{until_tokens: 1200, shares: {domain: 1, general: 3}, seq_length: 64, global_batch_size: 4, lr_scale: 0.5}, {}]"
)
"""The second begins with step 4, right after the first checkpoint, and the third with step 6."""
WORDS = [*SHORT, STAGES, "data.sources.general.role=replay"]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not cut off, on one rank."""
    return world.trained(tmp_path_factory.mktemp("stages") / "run", ONE, *WORDS)


def state_of(run: Path) -> dict[str, Any]:
    """`state.json` after the last step."""
    return json.loads((run / "checkpoints" / "step_00000006" / "state.json").read_text())  # type: ignore[no-any-return]


def test_stages_and_accounts(world: World, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stage, rate and shares of every step; accounts add up to the totals, in records, checkpoint and audit."""
    found = steps(whole)
    full = steps(world.trained(whole.parent / "plain", ONE, *SHORT, "eval.every_steps=0"))
    assert [record["lr"] for record in found] == [
        record["lr"] * scale
        for record, scale in zip(full, (1, 1, 1, 0.5, 0.5, 1), strict=True)
    ]  # fmt: skip
    planned = planned_curve(load_config(whole / "config.yaml").config)
    assert planned == [(record["step"], record["lr"]) for record in found]  # as a report draws it
    assert [record["share/domain"] for record in found] == pytest.approx([1, 1, 1, 0.25, 0.25, 0.7])
    assert [record["share/general"] for record in found] == pytest.approx([0, 0, 0, 0.75, 0.75, 0.3])
    assert [record["stage"] for record in records(whole, "step")] == [1, 1, 1, 2, 2, 3]
    last, state = found[-1], state_of(whole)
    entries = state["ledger"]["entries"]
    assert set(entries) == {"domain", "general", "domain.length_64", "general.length_64"}
    assert entries["domain"]["cursor"] + entries["general"]["cursor"] == 4 * 8
    assert entries["domain.length_64"]["cursor"] + entries["general.length_64"]["cursor"] == 2 * 4
    for name in ("domain", "general"):
        both = [entries[name], entries[f"{name}.length_64"]]
        assert last[f"tokens/{name}"] == sum(entry["tokens"] for entry in both)
        assert last[f"samples/{name}"] == sum(entry["cursor"] for entry in both)
        assert last[f"epochs/{name}"] == pytest.approx(sum(entry["epochs"] for entry in both))
        trained = state["trained"][name]
        assert trained["tokens"] == last[f"tokens/{name}"]
    total = sum(trained["loss_nats"] for trained in state["trained"].values())
    before, expected = 0, 0.0
    for record in found:
        expected += record["loss_nats_per_token"] * (record["tokens_total"] - before)
        before = record["tokens_total"]
    assert total == pytest.approx(expected, rel=1e-9)
    assert len(state["spike_history"]["loss"]) == 1  # losses of another stage are no measure
    audited = audit(whole)
    assert len(audited.compared_with) == 2 and audited.lowest_replay_share == 0
    assert {account.name: account.tokens for account in audited.accounts} == {
        name: entry["tokens"] for name, entry in entries.items()
    }
    assert main(["data", "ledger", str(whole)]) == 0
    out = capsys.readouterr().out
    assert "epochs in 2 lengths of samples" in out and "never had less than 0.0000" in out


@pytest.mark.parametrize(
    "layout", [pytest.param(Layout(4, tp=2, pp=2), marks=pytest.mark.more), Layout(2)], ids=str
)
def test_every_layout_gives_the_same_stages(
    world: World, whole: Path, layout: Layout, tmp_path: Path
) -> None:
    """Closely, and the same ledger: also where a run is killed at the border and taken up by other ranks."""
    run = world.trained(interrupted(whole, tmp_path / "run"), layout, *WORDS)
    assert_close(steps(run), steps(whole))
    assert state_of(run)["ledger"] == state_of(whole)["ledger"]
    run = world.trained(tmp_path / "new", layout, *WORDS, "train.steps=4", "data.prefetch_steps=3")
    assert_close(steps(run), steps(whole)[:4])


def test_killed_at_the_border_to_the_bit(world: World, whole: Path, tmp_path: Path) -> None:
    """The checkpoint is the last of the first stage; what follows is what followed."""
    run = world.trained(interrupted(whole, tmp_path / "run"), ONE, *WORDS)
    assert steps(run) == steps(whole)
    assert state_of(run) == state_of(whole)


def test_a_stage_that_starves_the_replay_is_refused(world: World, tmp_path: Path) -> None:
    """Before anything is started, with its number."""
    (outcome,) = world.train(tmp_path / "run", ONE, *WORDS, "data.replay_floor=0.05")
    assert "data.stages.0 gives sources of role replay 0 of the tokens" in outcome.error
    (outcome,) = world.train(tmp_path / "run", ONE, *WORDS, "data.stages.1.global_batch_size=3")
    assert "data.stages.1: train.global_batch_size=3 must be a multiple" in outcome.error
    assert not (tmp_path / "run").exists()
