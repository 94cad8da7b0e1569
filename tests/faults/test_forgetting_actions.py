"""The forgetting monitor by real runs: when it fires, what each action does, cut off at the worst moment, by layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import forgetting_calls
import guard_calls
import pytest
from commands import assert_close, evals, steps
from forgetting_world import EVERY, STEPS, ForgettingWorld, share, verdicts, without_replay
from shard_files import sign
from tiny_world import ONE, Layout

from cptron.checkpoint.layout import list_checkpoints, read_manifest
from cptron.checkpoint.marks import read_marks
from cptron.data.audit import audit
from cptron.forgetting.evaluation import read_evaluation
from cptron.testing import run_ranks

ALARM = 12
"""The step of the first alarm of a run with 5 % of replay."""
LITTLE = share(0.05)


@pytest.fixture(scope="module")
def whole(forgetting_world: ForgettingWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run with each action on one rank, not cut off by anything."""
    root = tmp_path_factory.mktemp("whole")
    return {
        action: forgetting_world.trained(root / action, ONE, *LITTLE, f"forgetting.action={action}")
        for action in ("raise_replay", "lower_lr", "rollback", "stop_and_keep_best")
    }


def found(run: Path) -> list[tuple[int, int, str, str]]:
    """(attempt, step, finding, action) of every verdict."""
    return [(line["attempt"], line["step"], line["finding"], line["action"]) for line in verdicts(run)]


def state_of(run: Path, step: int = STEPS) -> dict[str, Any]:
    """`state.json` of a checkpoint."""
    path = run / "checkpoints" / f"step_{step:08d}" / "state.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def acted(run: Path) -> tuple[int, str]:
    """Step and name of the first action."""
    return next((step, action) for _, step, _, action in found(run) if action != "none")


def test_it_fires_without_replay_and_not_with_a_quarter(
    forgetting_world: ForgettingWorld, tmp_path: Path
) -> None:
    """With the same epsilon; an alert changes nothing of the run, and no part of it is lost."""
    none = forgetting_world.trained(tmp_path / "none", ONE, without_replay(forgetting_world.root))
    quarter = forgetting_world.trained(tmp_path / "quarter", ONE, *share(0.25))
    assert "alarm" in [finding for _, _, finding, _ in found(none)]
    assert {finding for _, _, finding, _ in found(quarter)} == {"grace", "quiet"}
    assert [step for _, step, _, _ in found(none)] == list(range(0, STEPS + 1, EVERY))
    last = evals(none)[-1]
    assert last["forgetting/old/change_low"] > 0.3 > evals(quarter)[-1]["forgetting/old/change_high"]
    assert last["learning/new/change_nats"] < -3
    off = forgetting_world.trained(
        tmp_path / "off", ONE, *share(0.25), "data.valid.old.suite=''", "data.valid.new.suite=''"
    )
    assert steps(off) == steps(quarter)
    assert not (off / "forgetting.jsonl").exists() and not (off / "forgetting").exists()
    assert not any("forgetting" in key for record in evals(off) for key in record)


def test_raise_replay(whole: dict[str, Path]) -> None:
    """From the step after the alarm on replay has twice its share, exactly; old data comes back, and the log proves all
    of it."""
    run = whole["raise_replay"]
    assert acted(run) == (ALARM, "raise_replay")
    assert state_of(run)["reaction"]["replay_factor"] == 2.0
    before, after = state_of(run, ALARM)["ledger"]["entries"], state_of(run)["ledger"]["entries"]
    assert before["old"]["share"] == pytest.approx(0.05) and after["old"]["share"] == pytest.approx(0.1)
    drawn = {name: after[name]["cursor"] - before[name]["cursor"] for name in after}
    assert drawn["old"] == pytest.approx(0.1 * 8 * (STEPS - ALARM), abs=1)
    assert verdicts(run)[-1]["old"][2] < verdicts(run)[3]["old"][1]
    assert len(audit(run).compared_with) == STEPS // EVERY


def test_lower_lr(whole: dict[str, Path]) -> None:
    """The rate is half of the schedule's from the step after the alarm on; what was before is as without a monitor."""
    assert acted(whole["lower_lr"]) == (ALARM, "lower_lr")
    assert [record["lr"] for record in steps(whole["lower_lr"])] == [3e-3] * ALARM + [1.5e-3] * (
        STEPS - ALARM
    )
    assert steps(whole["lower_lr"])[:ALARM] == steps(whole["raise_replay"])[:ALARM]


def test_rollback(whole: dict[str, Path], forgetting_world: ForgettingWorld, tmp_path: Path) -> None:
    """The curve after it is that of a run which was resumed from the same checkpoint with that share of replay. What
    was left behind is whole, elsewhere, and not confused with the second pass."""
    run = whole["rollback"]
    (line,) = [line for line in verdicts(run) if line["action"] == "rollback"]
    assert (line["step"], line["to_step"], line["reaction"]["attempt"]) == (ALARM, EVERY, 1)
    assert [record["step"] for record in steps(run)] == list(range(1, STEPS + 1))
    left = list_checkpoints(run / "left" / "0")
    assert [(step, read_manifest(path).attempt) for step, path in left] == [(8, 0), (12, 0)]
    kept = list_checkpoints(run / "checkpoints")
    assert [(step, read_manifest(path).attempt) for step, path in kept] == [
        (step, int(step > EVERY)) for step in range(EVERY, STEPS + 1, EVERY)
    ]
    assert read_evaluation(run / "left" / "0" / "forgetting" / "step_00000012.losses").attempt == 0
    assert read_evaluation(run / "forgetting" / "step_00000012.losses").attempt == 1
    assert read_marks(run / "checkpoints") == {STEPS: ("before_alarm",)}
    assert len(audit(run).compared_with) == STEPS // EVERY
    planned = tmp_path / "planned"
    shutil.copytree(whole["lower_lr"], planned)
    for step, path in list_checkpoints(planned / "checkpoints"):
        if step > EVERY:
            shutil.rmtree(path)
    (planned / "forgetting.jsonl").unlink()
    (planned / "forgetting.jsonl").write_bytes(
        b"".join((run / "forgetting.jsonl").read_bytes().splitlines(keepends=True)[:2])
    )
    forgetting_world.trained(planned, ONE, *share(0.1))
    assert steps(planned, EVERY) == steps(run, EVERY)


def test_stop_and_keep_best(
    whole: dict[str, Path], forgetting_world: ForgettingWorld, tmp_path: Path
) -> None:
    """Saved where it stopped, the best checkpoint marked; a second start trains no further, one with another action
    does."""
    run = tmp_path / "run"
    shutil.copytree(whole["stop_and_keep_best"], run)
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [4, 8, ALARM]
    assert read_marks(run / "checkpoints") == {4: ("best",)}
    words = (*LITTLE, "forgetting.action=stop_and_keep_best")
    (outcome,) = forgetting_world.train(run, ONE, *words)
    assert outcome.error == "" and outcome.code == 0
    assert "stopped by the forgetting monitor after step 12" in outcome.stdout
    assert steps(run) == steps(whole["stop_and_keep_best"])
    forgetting_world.trained(run, ONE, *LITTLE, f"train.steps={ALARM + 1}")
    assert len(steps(run)) == ALARM + 1


@pytest.mark.parametrize(
    ("action", "moment", "after"),
    [
        pytest.param("raise_replay", "journalled", ONE, marks=pytest.mark.more),
        pytest.param("raise_replay", "acted", Layout(2, tp=2), marks=pytest.mark.more),
        pytest.param("rollback", "journalled", ONE, marks=pytest.mark.more),
        ("rollback", "loaded", Layout(2)),
        pytest.param("rollback", "acted", ONE, marks=pytest.mark.more),
        pytest.param("stop_and_keep_best", "journalled", ONE, marks=pytest.mark.more),
    ],
    ids=lambda value: str(value),
)
def test_killed_at_an_action_and_resumed(
    action: str,
    moment: str,
    after: Layout,
    forgetting_world: ForgettingWorld,
    whole: dict[str, Path],
    tmp_path: Path,
) -> None:
    """To the bit on one rank, closely on two. Up to the alarm the journal decides and not the detector, which here
    takes nothing for forgetting."""
    run, reference = tmp_path / "run", whole[action]
    words = (*LITTLE, f"forgetting.action={action}")
    overrides = forgetting_world.words(run, ONE, *words)
    assert run_ranks(forgetting_calls.train_until, 1, str(forgetting_world.config), overrides, moment) == [
        "killed"
    ]
    lines = (run / "forgetting.jsonl").read_bytes()
    assert (reference / "forgetting.jsonl").read_bytes().startswith(lines)
    if action != "rollback":
        blind = "forgetting.epsilon_nats=100"
        forgetting_world.trained(run, after, *words, blind, f"train.steps={ALARM}")
        assert (run / "forgetting.jsonl").read_bytes() == lines
    forgetting_world.trained(run, after, *words)
    assert found(run) == found(reference)
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [
        step for step, _ in list_checkpoints(reference / "checkpoints")
    ]
    if action == "rollback":
        assert [step for step, _ in list_checkpoints(run / "left" / "0")] == [
            step
            for step, _ in list_checkpoints(reference / "left" / "0")
            if moment != "journalled" or step < ALARM
        ]
    if after == ONE:
        assert steps(run) == steps(reference)
        assert state_of(run, steps(run)[-1]["step"]) == state_of(reference, steps(run)[-1]["step"])
        assert verdicts(run) == verdicts(reference)
    else:
        assert_close(steps(run), steps(reference))


@pytest.mark.more
@pytest.mark.parametrize("layout", [Layout(2, pp=2), Layout(2, tp=2), Layout(2, cp=2)], ids=str)
def test_every_layout_rolls_back(
    layout: Layout, forgetting_world: ForgettingWorld, whole: dict[str, Path], tmp_path: Path
) -> None:
    """All ranks alike, while saves go on; every window's loss is that of one rank."""
    run = tmp_path / "run"
    words = (*LITTLE, "forgetting.action=rollback", "checkpoint.asynchronous=true")
    forgetting_world.trained(run, layout, *words)
    assert found(run) == found(whole["rollback"])
    assert_close(steps(run), steps(whole["rollback"]))
    for step in (0, STEPS):
        path = f"forgetting/step_{step:08d}.losses"
        ours, theirs = read_evaluation(run / path), read_evaluation(whole["rollback"] / path)
        for name, expected in theirs.sets.items():
            assert ours.sets[name].facts == expected.facts
            assert ours.sets[name].tokens_W.tolist() == expected.tokens_W.tolist()
            assert ours.sets[name].nats_W == pytest.approx(expected.nats_W, rel=1e-3, abs=1e-3)


@pytest.mark.more
def test_attempts_are_told_apart(forgetting_world: ForgettingWorld, tmp_path: Path) -> None:
    """Two rollbacks to the same checkpoint, then the limit of actions; a kill after the second is no third."""
    run = tmp_path / "run"
    words = (*share(0.02), "forgetting.action=rollback", "forgetting.max_actions=2", "checkpoint.keep_last=1")
    words = (*words, "forgetting.epsilon_nats=0.2")
    overrides = forgetting_world.words(run, Layout(1), *words)
    forgetting_world.trained(run, ONE, *words)
    whole_run, lines = tmp_path / "whole", verdicts(run)
    shutil.move(run, whole_run)
    assert [line["attempt"] for line in lines if line["action"] == "rollback"] == [0, 1]
    assert {line["action"] for line in lines if line["attempt"] == 2} <= {"none", "alert"}
    for attempt in (0, 1):
        assert list_checkpoints(whole_run / "left" / str(attempt))
    for _ in range(2):
        killed = run_ranks(forgetting_calls.train_until, 1, str(forgetting_world.config), overrides, "loaded")
        assert killed == ["killed"]
    forgetting_world.trained(run, ONE, *words)
    assert verdicts(run) == lines
    assert steps(run) == steps(whole_run)


@pytest.mark.more
def test_guards_go_back_to_where_the_monitor_went(forgetting_world: ForgettingWorld, tmp_path: Path) -> None:
    """A gradient that is no number, after a rollback of the monitor and before the next save: the same checkpoint is
    loaded once more, and the rollback is still in force. The batch that is dropped is one of the second pass."""
    run = tmp_path / "run"
    words = [*LITTLE, "forgetting.action=rollback", "forgetting.patience=1", "forgetting.epsilon_nats=0.2"]
    words += [
        "forgetting.max_actions=1",
        "eval.every_steps=2",
        "guards.on_nonfinite=rollback",
        "guards.skip_batches=0",
    ]
    layout = Layout(2, tp=2)
    overrides = forgetting_world.words(run, layout, *words)
    fault = ("gradient", "decoder.layers.2.mlp.linear_fc2", 1, 7, float("nan"))
    outcomes = run_ranks(guard_calls.train_with_fault, 2, str(forgetting_world.config), overrides, *fault)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    (rollback,) = [line for line in verdicts(run) if line["action"] == "rollback"]
    assert (rollback["step"], rollback["to_step"]) == (6, 4)
    (entry,) = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert (entry["batch"], entry["action"], entry["to_step"]) == (7, "rollback", 4)
    assert len({tuple(place) for place in found(run)}) == len(found(run)), "each evaluation is judged once"
    state = state_of(run)
    assert (state["reaction"]["attempt"], state["reaction"]["replay_factor"]) == (1, 2.0)
    assert state["batches_drawn"] == STEPS + 1
    assert audit(run).skipped_batches == [7]


def test_taken_up_with_more_replay_it_is_judged_anew(
    forgetting_world: ForgettingWorld, whole: dict[str, Path], tmp_path: Path
) -> None:
    """From before the alarm: the journal has decided about another run."""
    run = tmp_path / "run"
    shutil.copytree(whole["lower_lr"], run)
    for step, path in list_checkpoints(run / "checkpoints"):
        if step > 2 * EVERY:
            shutil.rmtree(path)
    forgetting_world.trained(run, ONE, *share(0.5), f"train.steps={ALARM}")
    before, again = [line for line in verdicts(run) if line["step"] == ALARM]
    assert (before["finding"], before["action"]) == ("alarm", "lower_lr")
    assert again["old"][0] < before["old"][0] and again["settings"] != before["settings"]


def test_what_an_owed_evaluation_has_done_outlives_the_guards(
    forgetting_world: ForgettingWorld, whole: dict[str, Path], tmp_path: Path
) -> None:
    """A run that was asked to stop at the step of an alarm has saved without evaluating. Taken up it is evaluated and
    gets more replay; the guards take it back to that step, where it is owed once more."""
    run = tmp_path / "run"
    shutil.copytree(whole["raise_replay"], run)
    for step, path in list_checkpoints(run / "checkpoints"):
        if step > ALARM:
            shutil.rmtree(path)
    before = [line for line in verdicts(run) if line["step"] < ALARM]
    (run / "forgetting.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
    saved = run / "checkpoints" / f"step_{ALARM:08d}"
    state = state_of(run, ALARM) | {key: before[-1][key] for key in ("watch", "reaction")}
    (saved / "state.json").write_text(json.dumps(state))
    sign(saved, metrics={})
    words = [
        *LITTLE,
        "forgetting.action=raise_replay",
        "guards.on_nonfinite=rollback",
        "guards.skip_batches=0",
    ]
    overrides = forgetting_world.words(run, ONE, *words, f"train.steps={ALARM + 2}")
    fault = ("gradient", "decoder.layers.2.mlp.linear_fc2", 0, ALARM + 1, float("nan"))
    (outcome,) = run_ranks(guard_calls.train_with_fault, 1, str(forgetting_world.config), overrides, *fault)
    assert outcome.error == ""
    assert [line["action"] for line in verdicts(run) if line["step"] == ALARM] == ["raise_replay"]
    assert steps(run)[ALARM]["share/old"] == pytest.approx(0.1)
    shown = [record["step"] for record in evals(run)]
    assert len(shown) == len(set(shown))


def test_megatrons_order_is_watched(forgetting_world: ForgettingWorld, tmp_path: Path) -> None:
    """It has no stages and no more replay to give."""
    words = ("data.order=megatron", "data.megatron_samples=64", f"data.cache_dir={tmp_path / 'cache'}")
    words = (*words, "forgetting.action=lower_lr", "train.steps=2", "eval.every_steps=1")
    run = forgetting_world.trained(tmp_path / "run", ONE, *words)
    assert [line["step"] for line in verdicts(run)] == [0, 1, 2]


def test_nothing_is_done_where_nothing_is_watched(forgetting_world: ForgettingWorld) -> None:
    """No collective, no record, no change of the state."""
    words = ["run.dir=x", "data.valid.old.suite=''", "data.valid.new.suite=''", "forgetting.action=lower_lr"]
    assert run_ranks(forgetting_calls.judge_when_off, 1, str(forgetting_world.config), words) == [
        (0, False, "")
    ]
