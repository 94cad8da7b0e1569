"""`cptron select` on real runs: a last checkpoint that has forgotten too much, and interpolations with the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from forgetting_world import ForgettingWorld, share
from tiny_world import ONE, SHORT, World, command

from cptron.checkpoint.layout import list_checkpoints
from cptron.checkpoint.marks import read_marks
from cptron.forgetting.evaluation import read_evaluation
from cptron.selection.main import main

LAST, CHOSEN = "checkpoints/step_00000016", "checkpoints/step_00000004"
ALPHAS = (0.0, 0.5, 0.7, 1.0)


@pytest.fixture(scope="module")
def run(forgetting_world: ForgettingWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen steps with little replay, evaluated and saved after every four. Tests choose in it and change no
    checkpoint."""
    return forgetting_world.trained(tmp_path_factory.mktemp("select") / "run", ONE, *share(0.05))


def record(run: Path) -> dict[str, Any]:
    """What was written."""
    found: dict[str, Any] = json.loads((run / "selection.json").read_text())
    return found


def changes(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Name without folders -> change of old and of new data, with their ends."""
    return {
        row["name"].rpartition("/")[2]: [*row["old_change_nats"], *row["new_change_nats"]] for row in rows
    }


def test_an_earlier_checkpoint_is_chosen_and_survives(
    run: Path, forgetting_world: ForgettingWorld, tmp_path: Path
) -> None:
    """The last has learned most, beyond epsilon. The run goes on with a rule that keeps the newest only."""
    whole, run = run, tmp_path / "run"
    shutil.copytree(whole, run)
    assert main([str(run)]) == 0
    found = record(run)
    rows = {row["name"]: row for row in found["candidates"]}
    assert found["chosen"] == [CHOSEN] and rows[CHOSEN]["old_change_nats"][2] < 0.3
    assert rows[LAST]["new_change_nats"][2] < rows[CHOSEN]["new_change_nats"][1]
    assert rows[LAST]["old_change_nats"][1] > 0.3 and not rows[LAST]["is_within_epsilon"]
    assert "Which checkpoint" in (run / "report.html").read_text()
    forgetting_world.trained(run, ONE, *share(0.05), "train.steps=18", "checkpoint.keep_last=1")
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [4, 18]
    assert read_marks(run / "checkpoints") == {4: ("selected",)}


@pytest.mark.more
def test_interpolations(run: Path, forgetting_world: ForgettingWorld, tmp_path: Path) -> None:
    """At 0 the base, at 1 the checkpoint, between them a model within epsilon that has learned more than the chosen
    checkpoint; what the engine finds on an interpolation it finds on its conversion as well."""
    out, words = tmp_path / "out", ",".join(f"{alpha:g}" for alpha in ALPHAS)
    outcome = command("select", run, "--wise-ft", words, "--output", out, "--wise-ft-of", LAST)
    assert not outcome.error, outcome.error
    found = record(run)
    assert found["chosen"] == [CHOSEN] and found["grid"]["chosen"] == [str(out / "alpha_0.7")]
    assert found["result"] == found["grid"]["chosen"]
    assert read_marks(run / "checkpoints") == {4: ("selected",), 16: ("selected",)}
    assert found["grid"]["base"].endswith("pretrained/checkpoints/step_00000060")
    grid = changes(found["grid"]["candidates"])
    assert grid["alpha_1"] == pytest.approx(grid["step_00000016"], abs=1e-6)
    assert grid["alpha_0"] == pytest.approx([0.0] * 6, abs=1e-6)
    assert grid["alpha_0.7"][2] < 0.3 and grid["alpha_0.7"][4] < grid["step_00000004"][3]
    assert grid["alpha_0"][0] < grid["alpha_0.5"][0] < grid["alpha_0.7"][0] < grid["alpha_1"][0]
    assert not command("convert", out / "alpha_0.5", tmp_path / "half").error
    data = f"old={forgetting_world.root / 'old_valid'}"
    evaluated = command("eval", "--checkpoint", tmp_path / "half", "--data", data, "--seq-length", "16")
    loss = read_evaluation(out / "alpha_0.5.losses").sets["old"].loss_nats_per_token
    assert json.loads(evaluated.stdout)["loss_nats_per_token"] == pytest.approx(loss, abs=1e-5)
    wrong = run / CHOSEN
    again = ["select", str(run), "--wise-ft", "0.5", "--output", str(tmp_path / "new")]
    outcome = command(*again, "--wise-ft-base", wrong)
    assert "no weights have the losses of" in outcome.error and "name the base's weights" in outcome.error
    assert not (tmp_path / "new").exists()
    outcome = command(*again, "--wise-ft-base", out / "base")  # in Hugging Face's form
    assert not outcome.error, outcome.error
    assert changes(record(run)["grid"]["candidates"])["alpha_0.5"] != grid["alpha_0.5"], "it is of step 4 now"
    assert "already exists" in command(*again).error


@pytest.mark.more
def test_interpolations_of_an_adapter(world: World, tmp_path: Path) -> None:
    """Merged into its base, which is a converted model with a tokenizer."""
    words = [*SHORT, "data.valid.domain.suite=new", "data.valid.general.suite=old", "adapter.kind=lora"]
    run = world.trained(tmp_path / "run", ONE, *words, "adapter.rank=4", "optim.lr=2.0e-2")
    outcome = command("select", run, "--wise-ft", "0,1", "--output", tmp_path / "out")
    assert not outcome.error, outcome.error
    grid = record(run)["grid"]
    found = changes(grid["candidates"])
    assert found["alpha_1"] == pytest.approx(found["step_00000006"], abs=1e-4)
    assert found["alpha_0"] == pytest.approx([0.0] * 6, abs=1e-4)
    assert grid["base"] == str(world.base) and abs(found["alpha_1"][0]) > 0.1
    assert (tmp_path / "out" / "alpha_1" / "tokenizer.json").is_file()
