"""What a run with suites keeps and says, over its whole life: evaluations by tokens, bits per byte, a base that goes on
in a child, a control run.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from commands import evals
from tiny_world import ONE, SHORT, World

from cptron.checkpoint.layout import read_manifest
from cptron.forgetting.compare import Resampling, suite_changes
from cptron.forgetting.evaluation import read_evaluation

UNIT = 500
SUITES = [
    *SHORT,
    "eval.every_steps=0",
    f"eval.every_tokens={UNIT}",
    "data.valid.domain.suite=new",
    "data.valid.general.suite=old",
    "data.valid.general.max_tokens=0",
    "data.sources.general.role=replay",
    "forgetting.induction_sequences=4",
    "forgetting.probe_tokens=32",
]


@pytest.fixture(scope="module")
def parent(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, evaluated by tokens, saved after three and six."""
    return world.trained(tmp_path_factory.mktemp("forgetting") / "run", ONE, *SUITES)


def test_evaluations_by_tokens(world: World, parent: Path, tmp_path: Path) -> None:
    """After the step that passes a multiple, and after the last; also of a run that was stopped and goes on."""
    tokens = {record["step"]: record["tokens_total"] for record in evals(parent)}
    per_step = max(tokens.values()) / 6
    passed = [step for step in range(1, 7) if step * per_step // UNIT > (step - 1) * per_step // UNIT]
    assert list(tokens) == sorted({0, *passed, 6}) and len(tokens) > 3
    again = tmp_path / "again"
    world.trained(again, ONE, *SUITES, "train.steps=3", "optim.decay_steps=20")
    world.trained(again, ONE, *SUITES)
    assert [record["step"] for record in evals(again)] == sorted({0, *passed, 3, 6})


def test_bits_per_byte_are_those_of_the_text(world: World, parent: Path) -> None:
    """Of all documents, less the first token, which is not predicted."""
    from cptron.tokens.tokenizer import load_tokenizer

    texts = [json.loads(line)["text"] for line in world.corpus("general_valid").read_text().splitlines()]
    tokenizer = load_tokenizer(world.hugging_face)
    first = tokenizer.decode(tokenizer.encode(texts[0])[:1])
    size = sum(len(text.encode()) for text in texts) - len(first.encode())
    record = evals(parent)[0]
    nats = record["valid/general/loss_nats_per_token"] * record["valid/general/tokens"]
    assert record["valid/general/bits_per_byte"] == pytest.approx(nats / math.log(2) / size)


def test_a_checkpoint_has_all_that_a_choice_needs(parent: Path) -> None:
    """Its own losses and those of the base, window by window, give the interval that its manifest has."""
    record = evals(parent)[-1]
    checkpoint = parent / "checkpoints" / "step_00000006"
    metrics = read_manifest(checkpoint).metrics
    assert metrics == {
        key: value for key, value in record.items() if "/" in key and isinstance(value, int | float)
    }
    now, base = (read_evaluation(checkpoint / "forgetting" / f"{name}.losses") for name in ("now", "base"))
    assert (now.step, now.tokens_total, base.step) == (6, record["tokens_total"], 0)
    found = suite_changes(now, base, Resampling(1234, 0.95, 1000))
    for suite, key in (("old", "forgetting/old"), ("new", "learning/new")):
        ends = [record[f"{key}/change_{end}"] for end in ("nats", "low", "high")]
        assert [found[suite].estimate, found[suite].low, found[suite].high] == ends
    assert (parent / "forgetting" / "base.losses").read_bytes() == base.to_bytes()
    assert record["probe/induction/change_low"] <= record["probe/induction/change_nats"]


def test_a_child_keeps_the_base_and_a_control_is_shown(world: World, parent: Path, tmp_path: Path) -> None:
    """The child's step 0 is where its parent ended; against its own step 0, when asked for, nothing has changed."""
    start = f"start.checkpoint={parent / 'checkpoints' / 'step_00000006'}"
    words = [*SUITES, start, "train.steps=2", "optim.warmup_steps=0"]
    child = world.trained(tmp_path / "child", ONE, *words, f"forgetting.control={parent}")
    first, last = evals(child)[0], evals(parent)[-1]
    assert first["forgetting/base"] == f"base: that of {parent / 'checkpoints' / 'step_00000006'}"
    key = "forgetting/old/change_nats"
    assert first[key] == pytest.approx(last[key], abs=1e-5) and abs(first[key]) > 1e-3
    # the parent's step 0 is the base itself
    assert first["forgetting/old/control_change_nats"] == first[key]
    anew = world.trained(tmp_path / "anew", ONE, *words, "forgetting.base=step0")
    assert evals(anew)[0][key] == 0.0


def test_a_branch_goes_on_as_its_parent(world: World, parent: Path, tmp_path: Path) -> None:
    """With its base and its numbers to the bit, and a journal of its own."""
    start = f"start.checkpoint={parent / 'checkpoints' / 'step_00000003'}"
    branch = world.trained(tmp_path / "branch", ONE, *SUITES, "start.mode=branch", start)
    first, *others = evals(branch)
    assert (first["step"], first["forgetting/base"]) == (3, f"base: that of {start.partition('=')[2]}")
    assert others == [record for record in evals(parent) if record["step"] > 3]
    lines = [json.loads(line) for line in (branch / "forgetting.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, *(record["step"] for record in others)]
    world.trained(branch, ONE, *SUITES, "start.mode=branch", start, "train.steps=7")


def test_what_cannot_be_compared_is_refused_on_every_rank(world: World, parent: Path, tmp_path: Path) -> None:
    """A base of other windows, and a control run without evaluations."""
    words = [*SUITES, f"forgetting.base={parent}", "data.seq_length=16"]
    (outcome,) = world.train(tmp_path / "other", ONE, *words)
    assert "tells nothing of set domain: its tokens, windows or attention are others" in outcome.error
    (outcome,) = world.train(tmp_path / "control", ONE, *SUITES, f"forgetting.control={tmp_path}")
    assert "has no evaluations in forgetting/" in outcome.error


def test_a_set_that_has_changed_is_named(world: World, parent: Path, tmp_path: Path) -> None:
    """What was evaluated at step 0 was more of it: its change is not known, that of the other suite is."""
    run = tmp_path / "run"
    shutil.copytree(parent, run)
    world.trained(run, ONE, *SUITES, "train.steps=7", "data.valid.general.max_tokens=100")
    last = evals(run)[-1]
    (unknown,) = last["forgetting/unknown"]
    assert unknown.startswith("change of general is not known: its tokens, windows or attention are others")
    assert "learning/new/change_nats" in last and "forgetting/old/change_nats" not in last


def test_suites_that_come_later_have_no_base(world: World, tmp_path: Path) -> None:
    """A run goes on, and says that nothing tells what it forgets."""
    run = tmp_path / "run"
    world.trained(run, ONE, *SHORT, "train.steps=3", "optim.decay_steps=20")
    (outcome,) = world.train(run, ONE, *SUITES)
    assert outcome.error == ""
    assert "had no suites at its step 0, so that no change is known" in outcome.stdout
    last = evals(run)[-1]
    assert last["forgetting/finding"] == "none" and "forgetting/old/change_nats" not in last
