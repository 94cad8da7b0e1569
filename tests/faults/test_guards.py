"""Spikes and numbers that are not finite, by real runs: each policy, cut off at the worst moment, by layout."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import guard_calls
import pytest
from commands import assert_close, records, steps
from guard_world import BAD, SEQ, GuardWorld, make_guard_world
from tiny_world import ONE, Layout

from cptron.checkpoint.layout import list_checkpoints, read_manifest
from cptron.data.audit import audit
from cptron.runtime.pace import START
from cptron.testing import run_ranks

STEPS = 48
SAVED = 24
"""The checkpoint before the bad batch."""
TOKENS = 2 * SEQ
"""Of a global batch."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> GuardWorld:
    """One bad batch among good ones."""
    return make_guard_world(tmp_path_factory.mktemp("guards"))


@pytest.fixture(scope="module")
def undisturbed(guarded: GuardWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run under each policy on one rank, not cut off by anything."""
    root = tmp_path_factory.mktemp("undisturbed")
    policies = ("log", "skip", "rollback")
    return {policy: guarded.trained(root / policy, ONE, f"guards.on_spike={policy}") for policy in policies}


def journal(run: Path) -> list[dict[str, Any]]:
    """All entries."""
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def state_of(run: Path, step: int = STEPS) -> dict[str, Any]:
    """`state.json` of a checkpoint."""
    path = run / "checkpoints" / f"step_{step:08d}" / "state.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def events(run: Path) -> list[str]:
    """What the guards did, in order."""
    return [record["event"] for record in records(run, "guard")]


def assert_accounts(run: Path, skipped: list[int], num_steps: int = STEPS) -> None:
    """The log proves which batches were dropped, and no token is lost from the sums."""
    found, state = audit(run), state_of(run, num_steps)
    assert found.skipped_batches == skipped
    assert state["batches_drawn"] == num_steps + len(skipped)
    assert state["tokens_total"] == num_steps * TOKENS
    assert state["tokens_skipped"] == len(skipped) * TOKENS
    (account,) = found.accounts
    assert account.tokens == state["tokens_total"] + state["tokens_skipped"]
    assert account.tokens_skipped == state["tokens_skipped"]
    assert account.tokens == state["ledger"]["entries"]["lines"]["tokens"]
    assert len(found.compared_with) == len(list_checkpoints(run / "checkpoints"))
    assert sum(part.stop - part.start for part in found.seen("lines")) == 2 * num_steps * (SEQ + 1)


def test_log_says_so_and_trains_on(undisturbed: dict[str, Path]) -> None:
    """One entry, no step lost, and the update is made: the step after it differs from that of a skip."""
    run = undisturbed["log"]
    (entry,) = journal(run)
    assert (entry["batch"], entry["step"], entry["action"], entry["cause"]) == (BAD, BAD, "log", "spike")
    spike = steps(run)[BAD - 1]
    assert spike["loss_nats_per_token"] == entry["loss_nats_per_token"] > 3
    assert spike["grad_norm"] == entry["grad_norm"]
    assert max(entry["z_loss"], entry["z_grad_norm"]) > 6
    assert [record["step"] for record in steps(run)] == list(range(1, STEPS + 1))
    assert events(run) == ["log"]
    assert_accounts(run, [])
    assert f"batch {BAD}" in (run / "report.html").read_text()


def test_skip_drops_the_batch_alone(undisturbed: dict[str, Path]) -> None:
    """The step is tried again, at its own learning rate, with the next batch; what was before is untouched."""
    logged, skipped = steps(undisturbed["log"]), steps(undisturbed["skip"])
    assert skipped[: BAD - 1] == [{**r, "tokens_total": r["step"] * TOKENS} for r in logged[: BAD - 1]]
    assert [record["step"] for record in skipped] == list(range(1, STEPS + 1))
    assert skipped[BAD - 1]["loss_nats_per_token"] < 3
    assert events(undisturbed["skip"]) == ["skip"]
    assert_accounts(undisturbed["skip"], [BAD])


def test_rollback_drops_the_window(guarded: GuardWorld, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    """The same curve as that of a run that was resumed from the same checkpoint and told to drop these batches."""
    run = undisturbed["rollback"]
    (entry,) = journal(run)
    assert (entry["first"], entry["batch"], entry["to_step"]) == (BAD - 2, BAD, SAVED)
    assert [record["step"] for record in steps(run)] == list(range(1, STEPS + 1))
    assert events(run) == ["rollback", "drop"]
    assert_accounts(run, [BAD - 2, BAD - 1, BAD])
    planned = tmp_path / "run"
    shutil.copytree(undisturbed["log"], planned)
    shutil.rmtree(planned / "checkpoints" / f"step_{STEPS:08d}")
    lines = [{**entry, "batch": batch, "first": batch, "action": "skip"} for batch in range(BAD - 2, BAD + 1)]
    (planned / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    guarded.trained(planned, ONE, "guards.on_spike=rollback")
    assert steps(planned) == steps(run)
    assert state_of(planned)["ledger"] == state_of(run)["ledger"]
    assert state_of(planned)["spike_history"] == state_of(run)["spike_history"]
    assert_accounts(planned, [BAD - 2, BAD - 1, BAD])


@pytest.mark.parametrize(
    ("policy", "cut_off", "after"),
    [
        ("skip", guard_calls.train_until_journalled, ONE),
        pytest.param("skip", guard_calls.train_until_settled, Layout(2, tp=2), marks=pytest.mark.more),
        ("rollback", guard_calls.train_until_journalled, Layout(2)),
        pytest.param("rollback", guard_calls.train_until_settled, ONE, marks=pytest.mark.more),
    ],
    ids=["skip", "skip-tp2", "rollback-dp2", "rollback"],
)
def test_killed_at_an_action_and_resumed(
    policy: str,
    cut_off: Any,
    after: Layout,
    guarded: GuardWorld,
    undisturbed: dict[str, Path],
    tmp_path: Path,
) -> None:
    """To the bit on one rank, closely on two. Up to the bad batch the journal decides and not the detector, which here
    takes nearly everything for a spike; after it, nothing."""
    run, whole = tmp_path / "run", undisturbed[policy]
    words = guarded.words(run, ONE, f"guards.on_spike={policy}")
    assert run_ranks(cut_off, 1, str(guarded.config), words) == ["killed"]
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [SAVED]
    if policy == "skip":
        guarded.trained(run, after, "guards.on_spike=skip", "guards.spike_z=0.01", f"train.steps={BAD - 1}")
        assert journal(run) == journal(whole)
        losses = [record["loss_nats_per_token"] for record in steps(run)]
        assert (
            state_of(run, BAD - 1)["spike_history"]["loss"] == losses[-16:]
        )  # the first is the checkpoint's
    guarded.trained(run, after, f"guards.on_spike={policy}", "guards.spike_z=1e9")
    assert journal(run) == journal(whole)
    if after == ONE:
        assert steps(run) == steps(whole)
        assert state_of(run) == state_of(whole)
    else:
        assert_close(steps(run), steps(whole))
    assert events(run)[-1] == events(whole)[-1]
    assert_accounts(run, audit(whole).skipped_batches)


@pytest.mark.more
@pytest.mark.parametrize("layout", [Layout(2, tp=2), Layout(2, pp=2)], ids=str)
def test_every_layout_rolls_back(layout: Layout, guarded: GuardWorld, tmp_path: Path) -> None:
    """All ranks go back together, and a resume after a kill repeats it to the bit. One of the runs saves while it
    trains: the checkpoint that it goes back to may just be in the making."""
    run, again = tmp_path / "run", tmp_path / "again"
    guarded.trained(run, layout, "guards.on_spike=rollback", "checkpoint.asynchronous=true")
    assert [(entry["batch"], entry["action"]) for entry in journal(run)] == [(BAD, "rollback")]
    assert_accounts(run, [BAD - 2, BAD - 1, BAD])
    words = guarded.words(again, layout, "guards.on_spike=rollback")
    assert run_ranks(guard_calls.train_until_settled, 2, str(guarded.config), words) == ["killed"] * 2
    guarded.trained(again, layout, "guards.on_spike=rollback")
    assert steps(again) == steps(run)


def test_too_many_actions_stop_the_run(guarded: GuardWorld, tmp_path: Path) -> None:
    """Where nearly everything counts as a spike: two skips, then a clear end on both ranks, and again at a restart."""
    run = tmp_path / "run"
    words = ("guards.on_spike=skip", "guards.spike_z=0.01", "guards.max_actions=2", "optim.lr=1.0e-6")
    for _ in range(2):
        errors = {outcome.error for outcome in guarded.train(run, Layout(2), *words)}
        (error,) = errors
        assert error.startswith("TrainingError: loss ")
        assert "2 batch(es) were skipped or rolled back within the last 16 (guards.max_actions=2)" in error
        assert [entry["action"] for entry in journal(run)] == ["skip", "skip"]


def test_rollback_without_a_checkpoint(guarded: GuardWorld, tmp_path: Path) -> None:
    """Nothing to go back to is an error on every rank, and no action."""
    run = tmp_path / "run"
    words = ("guards.on_spike=rollback", f"checkpoint.every_steps={STEPS}")
    outcomes = guarded.train(run, Layout(2), *words)
    assert all("a rollback needs a checkpoint" in outcome.error for outcome in outcomes)
    assert not (run / "journal.jsonl").exists()


@pytest.mark.parametrize("on_damage", ["previous", "stop"])
def test_rollback_past_a_damaged_checkpoint(on_damage: str, guarded: GuardWorld, tmp_path: Path) -> None:
    """It is named and passed over, or the run stops, as in a resume. What had been measured of the steps that are lost
    is forgotten: the new checkpoint of the same step does not have it. To prove one may take longer than a step."""
    run = tmp_path / "run"
    lost = run / "checkpoints" / "step_00000036"
    words = ("guards.on_spike=rollback", "checkpoint.every_steps=12", f"checkpoint.on_damage={on_damage}")
    overrides = guarded.words(run, ONE, *words)
    call = (guard_calls.train_with_damage, 1, str(guarded.config), overrides, BAD, str(lost))
    ((outcome, phases),) = run_ranks(*call)
    if on_damage == "stop":
        assert f"{lost}" in outcome.error and "set checkpoint.on_damage=previous" in outcome.error
        assert not (run / "journal.jsonl").exists()
        return
    assert outcome.error == "" and phases == [START]
    assert f"passed over: checkpoint {lost}" in outcome.stdout
    assert [entry["to_step"] for entry in journal(run)] == [24]
    assert read_manifest(lost).metrics == {}


def test_entries_about_other_data_are_not_repeated(
    guarded: GuardWorld, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    """With another batch size, the bad batch holds other samples: it is trained on, and a note says so."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed["skip"], run)
    shutil.rmtree(run / "checkpoints" / f"step_{STEPS:08d}")
    words = ("guards.on_spike=log", "train.global_batch_size=1", "guards.spike_z=1e9")
    (outcome,) = guarded.train(run, ONE, *words)
    assert outcome.error == ""
    assert "journal.jsonl has 1 action(s) about other data" in outcome.stdout
    assert state_of(run)["batches_drawn"] == STEPS and state_of(run)["tokens_skipped"] == 0


def test_a_damaged_journal_stops_every_rank(
    guarded: GuardWorld, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    """A line that is no entry, not the last one cut off, could hide an action."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed["skip"], run)
    path = run / "journal.jsonl"
    line = path.read_bytes()
    path.write_bytes(b'{"batch": 3}\n' + line)
    errors = {outcome.error for outcome in guarded.train(run, Layout(2))}
    (error,) = errors
    assert error.startswith(f"CheckpointError: {path}:1 is no entry of a journal")


def test_a_journal_that_is_not_the_run_s(
    guarded: GuardWorld, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    """Entries that are lost, and a checkpoint that a rollback has left behind, are both found."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed["skip"], run)
    (run / "journal.jsonl").rename(tmp_path / "journal")
    (outcome,) = guarded.train(run, ONE, f"train.steps={STEPS + 2}")
    assert "journal.jsonl has 0 action(s), the checkpoint was made with 1; restore the file" in outcome.error
    entry = {**journal(undisturbed["rollback"])[0], "first": STEPS - 1, "batch": STEPS + 3}
    lines = (tmp_path / "journal").read_text() + json.dumps(entry) + "\n"
    (run / "journal.jsonl").write_text(lines)
    (outcome,) = guarded.train(run, ONE, f"train.steps={STEPS + 2}")
    assert (
        f"what was learned from batch {STEPS - 1} to {STEPS + 1}, which journal.jsonl drops" in outcome.error
    )


FC1, FC2 = "decoder.layers.2.mlp.linear_fc1", "decoder.layers.2.mlp.linear_fc2"


def faulty(
    guarded: GuardWorld, run: Path, layout: Layout, fault: tuple[str, str, int, int, float], *words: str
) -> list[str]:
    """The error of every rank of a run of 6 steps, saved after 3, with a `fault` (see `train_with_fault`)."""
    overrides = guarded.words(run, layout, "train.steps=6", "checkpoint.every_steps=3", *words)
    call = (guard_calls.train_with_fault, layout.world_size, str(guarded.config), overrides)
    return [outcome.error for outcome in run_ranks(*call, *fault)]


@pytest.mark.parametrize(
    ("layout", "rank", "layer", "place"),
    [
        (Layout(2, tp=2), 1, 2, "rank 1: tp 1, pp 0, dp 0"),
        (Layout(2, pp=2), 0, 1, "rank 0: tp 0, pp 0, dp 0"),  # the stage after it has bad outputs too
        pytest.param(Layout(2, pp=2), 1, 2, "rank 1: tp 0, pp 1, dp 0", marks=pytest.mark.more),
        pytest.param(Layout(2), 1, 2, "rank 1: tp 0, pp 0, dp 1", marks=pytest.mark.more),
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [math.nan, 3e38], ids=["nan", "overflow"])
def test_the_first_bad_tensor_is_named(
    value: float, layout: Layout, rank: int, layer: int, place: str, guarded: GuardWorld, tmp_path: Path
) -> None:
    """A weight that is NaN by its own name; one that is finite and too large by the output that it spoils, with the
    sample. Every rank says the same, and no step is taken."""
    run, name = tmp_path / "run", f"decoder.layers.{layer}.mlp.linear_fc1"
    errors = faulty(guarded, run, layout, ("weight", f"{name}.weight", rank, 3, value))
    assert len(set(errors)) == 1
    assert errors[0].startswith(
        "TrainingError: training loss is nan at step 3, batch 3; no weight was changed."
    )
    if math.isnan(value):
        assert f"First bad tensor: weight {name}.weight (32 element(s) NaN or Inf, on {place})" in errors[0]
    else:
        assert f"First bad tensor: output of {name} (on {place}), micro-batch 0, sample " in errors[0]
        number = 4 + (rank if layout == Layout(2) else 0)  # the second row is the second rank's
        assert f"sample {number} of source lines. " in errors[0]
    assert [record["step"] for record in steps(run)] == [1, 2]


@pytest.mark.parametrize("layout", [ONE, Layout(2, pp=2)], ids=str)
def test_a_gradient_alone_goes_wrong(layout: Layout, guarded: GuardWorld, tmp_path: Path) -> None:
    """The repeated forward pass is clean; the parameters are named in the order of the backward pass, from the module
    whose output's gradient went wrong."""
    local = FC2 if layout == ONE else FC2.replace("layers.2", "layers.0")
    errors = faulty(
        guarded, tmp_path / "run", layout, ("gradient", local, layout.world_size - 1, 3, math.nan)
    )
    assert len(set(errors)) == 1
    assert errors[0].startswith(
        "TrainingError: gradient norm is nan at step 3, batch 3; no weight was changed. "
    )
    assert "The same forward pass, repeated, is finite (loss " in errors[0]
    place = "rank 0: tp 0, pp 0" if layout == ONE else "rank 1: tp 0, pp 1"
    assert f"NaN or Inf in the gradient: {FC2}.weight (on {place}), " in errors[0]


def test_bad_weights_are_not_skipped_but_rolled_back(guarded: GuardWorld, tmp_path: Path) -> None:
    """No other batch helps: `skip` stops, `rollback` takes the weights of the checkpoint and goes on."""
    name = f"{FC1}.weight"
    words = ("guards.on_nonfinite=skip",)
    errors = faulty(guarded, tmp_path / "skip", Layout(2, tp=2), ("weight", name, 1, 5, math.nan), *words)
    assert all("No other batch can help; use guards.on_nonfinite=rollback" in error for error in errors)
    words = ("guards.on_nonfinite=rollback",)
    run = tmp_path / "rollback"
    assert faulty(guarded, run, Layout(2, tp=2), ("weight", name, 1, 5, math.nan), *words) == ["", ""]
    (entry,) = journal(run)
    assert (entry["cause"], entry["to_step"], entry["loss_nats_per_token"]) == ("nonfinite", 3, "nan")
    assert entry["found"].startswith(f"first bad tensor: weight {name}")
    assert_accounts(run, [4, 5], 6)


def test_a_bad_gradient_is_skipped(guarded: GuardWorld, tmp_path: Path) -> None:
    """Weights, moments and the run go on unharmed."""
    run = tmp_path / "run"
    words = ("guards.on_nonfinite=skip",)
    assert faulty(guarded, run, Layout(2), ("gradient", FC2, 1, 5, math.inf), *words) == ["", ""]
    (entry,) = journal(run)
    assert (entry["batch"], entry["action"], entry["cause"]) == (5, "skip", "nonfinite")
    assert all(math.isfinite(record["grad_norm"]) for record in steps(run))
    assert_accounts(run, [5], 6)


def test_a_stop_completes_the_checkpoint_that_is_being_written(guarded: GuardWorld, tmp_path: Path) -> None:
    """Begun after step 3, and the step after it goes wrong: nothing that was trained is lost."""
    run, words = tmp_path / "run", ("checkpoint.asynchronous=true",)
    errors = faulty(guarded, run, Layout(2), ("gradient", FC2, 1, 4, math.nan), *words)
    assert all(error.startswith("TrainingError: gradient norm is nan at step 4") for error in errors)
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [3]
