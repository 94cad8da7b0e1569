"""Everything against forgetting in one run: schedule, stages, mixer, floors, regularisers, a monitor that goes back.

One process, eight ranks at tp 2, pp 2, dp 2, and a run that is taken up by the other layout are the same run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import evals, steps
from forgetting_world import EVERY, STEPS, ForgettingWorld, share, verdicts
from tiny_world import ONE, Layout, command

from cptron.checkpoint.layout import list_checkpoints
from cptron.data.audit import audit

EIGHT = Layout(8, tp=2, pp=2)
STAGES = (
    "data.stages=[{until_tokens: 700}, "
    "{until_lr_frac: 0.5, shares: {new: 0.96, old: 0.04}, seq_length: 32, global_batch_size: 4, lr_scale: 0.75}, {}]"
)


@pytest.fixture(scope="module")
def everything(forgetting_world: ForgettingWorld, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that turn all of it on."""
    root, fisher = forgetting_world.root, tmp_path_factory.mktemp("fisher") / "of_base"
    base = root / "pretrained" / "checkpoints" / "step_00000060"
    made = command(
        *("fisher", base, "--data", root / "old", "--output", fisher),
        *("--sequences", "8", "--seq-length", "16"),
    )
    assert not made.error, made.error
    return [
        *share(0.05),
        "start.rewarm=true",
        *("optim.schedule=wsd", "optim.warmup_steps=2", "optim.anneal_steps=6", "optim.weight_decay=0.0"),
        "optim.eps=1.0e-5",  # else gradients that are noise become steps of the whole rate
        STAGES,
        *("data.replay_floor=0.03", "data.prefetch_steps=3"),
        *("data.mixer=ado", "data.mixer_every_batches=2", "data.mixer_skip_batches=2"),
        *("forgetting.action=rollback", "forgetting.epsilon_nats=0.1", "forgetting.max_actions=1"),
        *("regularise.l2sp=0.1", "regularise.ewc=1.0e-4", f"regularise.fisher={fisher}"),
        *("regularise.agem=true", "regularise.distill.weight=0.05", "regularise.distill.top_k=8"),
        "optim.freeze=[{match: word_embeddings, until_tokens: 900, rows_below: 10}]",
    ]


@pytest.fixture(scope="module")
def whole(
    forgetting_world: ForgettingWorld, everything: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of one process."""
    return forgetting_world.trained(tmp_path_factory.mktemp("together") / "run", ONE, *everything)


def cursors(run: Path) -> dict[str, tuple[int, int]]:
    """How many samples and tokens of each account were drawn, after the last step."""
    state = json.loads((run / "checkpoints" / f"step_{STEPS:08d}" / "state.json").read_text())
    return {name: (entry["cursor"], entry["tokens"]) for name, entry in state["ledger"]["entries"].items()}


def done(run: Path) -> list[tuple[int, int, str, str]]:
    """(attempt, step, finding, action) of every verdict."""
    return [(line["attempt"], line["step"], line["finding"], line["action"]) for line in verdicts(run)]


def assert_same_run(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Counts equal, computed values within 2e-4; but not the cosine, the quotient of two small numbers."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if not isinstance(value, float):
                assert ours[key] == value, f"step {theirs['step']}: {key}"
            elif key != "agem/cosine":
                small = 1e-5 if "divergence" in key or "change" in key else 1e-9
                wanted = pytest.approx(value, rel=2e-4, abs=small)
                assert ours[key] == wanted, f"step {theirs['step']}: {key} is {ours[key]}, not {value}"


def test_all_of_it_has_happened(whole: Path) -> None:
    """Or else the other tests would compare less than they say."""
    actions = [action for *_, action in done(whole)]
    assert actions.count("rollback") >= 1
    found = steps(whole)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert any("length_32" in name for name in cursors(whole))
    assert len((whole / "mix.jsonl").read_text().splitlines()) > 4
    last = found[-1]
    assert last["penalty/l2sp"] > 0 and last["penalty/ewc"] > 0
    assert any(record.get("divergence_nats_per_token/old", 0.0) > 0 for record in found)
    assert {record["agem/projected"] for record in found} <= {0.0, 1.0}
    assert len({record["share/old"] for record in found}) > 3
    assert min(record["share/old"] for record in found) >= 0.03 - 1e-9
    assert len(audit(whole).compared_with) == len(list_checkpoints(whole / "checkpoints"))


def test_eight_ranks_give_the_run_of_one(
    forgetting_world: ForgettingWorld, everything: list[str], whole: Path, tmp_path: Path
) -> None:
    """The same samples and verdicts, and the same numbers, at tp 2, pp 2, dp 2."""
    run = forgetting_world.trained(tmp_path / "run", EIGHT, *everything)
    assert cursors(run) == cursors(whole)
    assert done(run) == done(whole)
    assert_same_run(steps(run), steps(whole))
    assert_same_run(evals(run), evals(whole))


@pytest.mark.parametrize("layout", [ONE, pytest.param(EIGHT, marks=pytest.mark.more)], ids=str)
def test_taken_up_in_its_middle(
    forgetting_world: ForgettingWorld, everything: list[str], whole: Path, layout: Layout, tmp_path: Path
) -> None:
    """By the same layout to the bit; by eight ranks closely, with what the journals have decided."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step, path in list_checkpoints(run / "checkpoints"):
        if step > 2 * EVERY:
            shutil.rmtree(path)
    forgetting_world.trained(run, layout, *everything)
    assert cursors(run) == cursors(whole)
    assert done(run) == done(whole)
    if layout == ONE:
        assert steps(run) == steps(whole)
        assert evals(run) == evals(whole)
    else:
        assert_same_run(steps(run), steps(whole))
