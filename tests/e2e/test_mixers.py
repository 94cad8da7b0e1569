"""An online mixer in real runs: its decisions are journaled, hold after a kill under other layouts, and keep floors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mix_calls
import pytest
from commands import assert_close, records, steps
from tiny_world import ONE, SHORT, Layout, World, interrupted

from cptron.data.audit import audit
from cptron.testing import run_ranks

WORDS = [
    *SHORT,
    "train.steps=12",
    "eval.every_steps=0",
    "checkpoint.every_steps=8",
    "data.mixer=ado",
    "data.mixer_every_batches=1",
    "data.mixer_skip_batches=0",
    "data.sources.general.role=replay",
    "data.replay_floor=0.3",
    "data.prefetch_steps=3",
]


def decisions(run: Path) -> list[dict[str, Any]]:
    """All lines of the journal."""
    return [json.loads(line) for line in (run / "mix.jsonl").read_text().splitlines()]


def state_of(run: Path) -> dict[str, Any]:
    """`state.json` after the last step."""
    return json.loads((run / "checkpoints" / "step_00000012" / "state.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not cut off, on one rank."""
    return world.trained(tmp_path_factory.mktemp("mixers") / "run", ONE, *WORDS)


def test_shares_move_and_keep_their_floor(whole: Path) -> None:
    """From the fifth update on, as the log proves; what is asked for is what comes into force a batch later."""
    made = decisions(whole)
    assert [decision["batch"] for decision in made] == list(range(1, 12))
    shares = [record["share/general"] for record in steps(whole)]
    assert shares[:5] == pytest.approx([0.3] * 5)
    assert [decision["shares"]["general"] for decision in made] == pytest.approx(shares[1:])
    assert len(set(shares[5:])) > 1 and min(shares) >= 0.3 - 1e-12
    assert [record["batch"] for record in records(whole, "mix")] == list(range(1, 12))
    found = audit(whole)
    assert len(found.compared_with) == 2 and found.lowest_replay_share == pytest.approx(min(shares))


@pytest.mark.parametrize("layout", [ONE, Layout(2)], ids=str)
def test_the_journal_decides_after_a_kill(world: World, whole: Path, layout: Layout, tmp_path: Path) -> None:
    """To the bit on one rank. On two the losses have other last bits, and every batch is the same all the same."""
    run = interrupted(whole, tmp_path / "run")
    before = (run / "mix.jsonl").read_text()
    (run / "mix.jsonl").write_text(before + '{"cut off')
    world.trained(run, layout, *WORDS)
    assert (run / "mix.jsonl").read_text() in (before, before + '{"cut off')
    assert state_of(run)["ledger"] == state_of(whole)["ledger"]
    assert state_of(run)["share_factors"] == state_of(whole)["share_factors"]
    assert [record["batch"] for record in records(run, "mix")] == list(range(1, 12))
    if layout == ONE:
        assert steps(run) == steps(whole) and state_of(run) == state_of(whole)
    else:
        assert_close(steps(run), steps(whole))


def test_without_its_journal_a_run_decides_alike_or_stops(world: World, whole: Path, tmp_path: Path) -> None:
    """Lines after the checkpoint are made again from its state; those before it may not be lost."""
    run = interrupted(whole, tmp_path / "run")
    lines = (run / "mix.jsonl").read_text().splitlines(keepends=True)
    (run / "mix.jsonl").write_text("".join(lines[:7]))
    world.trained(run, ONE, *WORDS)
    assert steps(run) == steps(whole) and (run / "mix.jsonl").read_text() == "".join(lines)
    run = interrupted(whole, tmp_path / "lost")
    (run / "mix.jsonl").write_text("".join(lines[:6]))
    (outcome,) = world.train(run, ONE, *WORDS)
    assert "mix.jsonl has 6 decision(s), the checkpoint was made with 7" in outcome.error


def test_turned_off_the_shares_are_the_configured_ones(world: World, whole: Path, tmp_path: Path) -> None:
    """In a run that is taken up; and the mixer leaves nothing behind in its state."""
    run = interrupted(whole, tmp_path / "run")
    world.trained(run, ONE, *WORDS, "data.mixer=static", "train.steps=10")
    shares = [record["share/general"] for record in steps(run)]
    assert shares[7] != pytest.approx(0.3, abs=1e-6) and shares[8:] == pytest.approx([0.3, 0.3])
    saved = json.loads((run / "checkpoints" / "step_00000010" / "state.json").read_text())
    assert (saved["mixing"], saved["share_factors"]) == ({}, {})


def test_what_is_decided_is_in_force_in_every_stage(world: World, tmp_path: Path) -> None:
    """Also where a stage has left a source out; and a run that is taken up at the border of two stages decides with the
    shares of the one that begins, as a run does that was not cut off."""
    # of 256 tokens or little less are the batches; after the eighth is a checkpoint
    words = [*WORDS, "data.stages=[{until_tokens: 1920}, {until_tokens: 2432, shares: {general: 1}}, {}]"]
    whole = world.trained(tmp_path / "whole", ONE, *words)
    made = {decision["batch"]: decision["shares"] for decision in decisions(whole)}
    assert [set(made[number]) == {"general"} for number in range(7, 11)] == [False, True, True, False]
    for record in steps(whole)[5:]:
        for name, share in made[record["step"] - 1].items():
            assert record[f"share/{name}"] == pytest.approx(share), f"step {record['step']}"
    run = interrupted(whole, tmp_path / "run")
    (run / "mix.jsonl").write_text("".join((whole / "mix.jsonl").read_text().splitlines(keepends=True)[:7]))
    world.trained(run, ONE, *words)
    assert decisions(run) == decisions(whole)
    assert steps(run) == steps(whole) and state_of(run) == state_of(whole)


@pytest.mark.parametrize("layout", [pytest.param(ONE, marks=pytest.mark.more), Layout(2)], ids=str)
def test_shares_set_by_something_else(world: World, layout: Layout, tmp_path: Path) -> None:
    """At a step that is saved, with batches read ahead: in force from the next batch on, in the next stage too, and
    after a resume; the log proves that no sample is repeated or left out."""
    run = tmp_path / "run"
    stages = "data.stages=[{until_tokens: 1200}, {shares: {domain: 0.5, general: 0.5}}]"
    words = [
        f"run.dir={run}",
        *layout.overrides,
        *SHORT,
        "data.prefetch_steps=3",
        "eval.every_steps=0",
        stages,
    ]
    config = str(world.config)
    outcomes = run_ranks(
        mix_calls.train_and_raise, layout.world_size, config, [*words, "train.steps=4"], 3, "general"
    )
    assert not any(outcome.error for outcome in outcomes), outcomes
    world.trained(run, layout, *words[1:])
    expected = [0.3] * 3 + [0.6 / 1.3] * 2 + [1 / (1 + 0.7 / 1.3 / 0.7 / (0.6 / 1.3 / 0.3))]
    assert [record["share/general"] for record in steps(run)] == pytest.approx(expected)
    found = audit(run)
    assert len(found.compared_with) == 3 and sum(account.samples for account in found.accounts) == 6 * 8
