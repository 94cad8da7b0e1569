"""`cptron anneal`: the configuration of the child, and refusals that name what serves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from commands import snapshot
from run_checkpoints import make_run, store
from shard_files import sign

from cptron.cli import main as cptron
from cptron.config.check import check_config
from cptron.config.load import load_config
from cptron.errors import CheckpointError, ConfigError
from cptron.optim.schedule import learning_rate
from cptron.train.anneal import child, main

PER_STEP = 8 * 32


def test_the_child_leaves_the_constant_and_ends_at_the_lowest(tmp_path: Path) -> None:
    """Up to the checkpoint the rates are the parent's, then they fall over the tokens asked for; nothing else of the
    configuration changes, and it passes every rule."""
    parent = make_run(tmp_path / "run", [600, 700], "run.name=mine")
    made = child(tmp_path / "run", 700, 50 * PER_STEP + 1, [])
    check_config(made, 1)
    assert made.train.steps == 751 and made.run.dir == f"{tmp_path}/run-anneal-700" and made.run.name == ""
    assert (made.start.mode, made.start.checkpoint) == ("branch", f"{tmp_path}/run/checkpoints/step_00000700")
    assert made.data == parent.data
    for step in range(0, 701, 50):
        assert learning_rate(made.optim, step, 751) == learning_rate(parent.optim, step, 1000)
    rates = [learning_rate(made.optim, step, 751) for step in range(700, 752)]
    assert rates[0] == 1.65e-4 and rates[-1] == 3e-5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_other_schedules_with_a_constant_phase(schedule: str, tmp_path: Path) -> None:
    words = [f"optim.schedule={schedule}", "optim.cooldown_steps=0", "optim.lr_constant=0"]
    words += ["optim.anneal_steps=100"] if schedule == "wsd" else []
    make_run(tmp_path / "run", [500], *words)
    made = child(tmp_path / "run", 500, 20 * PER_STEP, ["optim.decay_form=linear"])
    assert learning_rate(made.optim, 500, 520) == 3e-4
    assert learning_rate(made.optim, 510, 520) == pytest.approx(1.65e-4)
    assert learning_rate(made.optim, 520, 520) == 3e-5


def test_overrides_are_the_childs(tmp_path: Path) -> None:
    """Its blend, batch, lowest rate and directory; tokens are counted in its own batches."""
    make_run(tmp_path / "run", [700])
    words = ["data.sources=[{name: best, path: b, token_share: 1}]", "train.global_batch_size=16"]
    made = child(tmp_path / "run", 700, 10 * 512, [*words, "optim.lr_min=1e-6", f"run.dir={tmp_path}/mine"])
    assert [source.name for source in made.data.sources] == ["best"]
    assert (made.train.steps, made.optim.lr_min, made.run.dir) == (710, 1e-6, f"{tmp_path}/mine")


@pytest.mark.parametrize(("drawn", "stage", "steps"), [(900, 1, 20), (1000, 1, 10), (1500, 2, 10), (0, 3, 5)])
def test_tokens_are_counted_in_the_batches_of_the_stage(
    drawn: int, stage: int, steps: int, tmp_path: Path
) -> None:
    """The one that the last batch was of, or the next where that has ended."""
    stages = "[{until_tokens: 1000}, {until_lr_frac: 0.5, seq_length: 64}, {seq_length: 64, global_batch_size: 16}]"
    make_run(tmp_path / "run", [700], f"data.stages={stages}")
    path = tmp_path / "run" / "checkpoints" / "step_00000700" / "state.json"
    path.write_text(json.dumps({"stage": stage, "ledger": {"entries": {"a": {"tokens": drawn}}}}))
    sign(path.parent)
    assert child(tmp_path / "run", 700, 20 * PER_STEP, []).train.steps == 700 + steps


def test_a_file_may_stand_for_its_run(tmp_path: Path) -> None:
    """Its values are the child's, but for the rates that led to the checkpoint."""
    make_run(tmp_path / "run", [700])
    path = tmp_path / "edited.yaml"
    path.write_text((tmp_path / "run/config.yaml").read_text().replace("lr: 0.0003", "lr: 0.0002"))
    assert load_config(path).config.optim.lr == 2e-4
    made = child(path, 700, PER_STEP, [])
    assert (made.optim.lr, made.train.steps) == (3e-4, 701)


@pytest.mark.parametrize(
    ("step", "words", "message"),
    [
        (5, (), r"from the warm-up \(steps 0 to 9\) .* not from its constant \(steps 610 on\); use 610, 700"),
        (300, (), r"from the cool-down \(steps 10 to 609\) .* use 610, 700"),
        (701, (), r"has no such checkpoint, it has 5, 300, 610, 700; choose one"),
        (
            700,
            ("optim.anneal_steps=320",),
            r"from the decay \(steps 680 to 999\) .*\(steps 610 to 679\); use 610",
        ),
    ],
)
def test_a_checkpoint_that_does_not_serve(
    step: int, words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", [5, 300, 610, 700], *words)
    with pytest.raises((ConfigError, CheckpointError), match=rf"--from {step}: .*{message}"):
        child(tmp_path / "run", step, PER_STEP, [])


def test_a_schedule_without_a_constant_phase(tmp_path: Path) -> None:
    words = ["optim.schedule=cosine", "optim.cooldown_steps=0", "optim.lr_constant=0"]
    make_run(tmp_path / "run", [500], *words)
    with pytest.raises(ConfigError, match=r"optim\.schedule=cosine has no constant phase"):
        child(tmp_path / "run", 500, PER_STEP, [])


def test_the_checkpoint_says_what_it_was_trained_with(tmp_path: Path) -> None:
    """Not the configuration that is in force now: a run may have changed its schedule since."""
    before = make_run(tmp_path / "before", [])
    now = make_run(tmp_path / "run", [700], "optim.cooldown_steps=800")
    store(tmp_path / "run", 650, before)
    assert now.optim.cooldown_steps == 800
    assert child(tmp_path / "run", 650, PER_STEP, []).optim.cooldown_steps == 600
    with pytest.raises(ConfigError, match="from the cool-down"):
        child(tmp_path / "run", 700, PER_STEP, [])


@pytest.mark.parametrize(
    "key", ["optim.lr", "optim.schedule", "train.steps", "start.checkpoint", "optim.decay_steps"]
)
def test_what_the_command_computes_is_no_override(key: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", [700])
    with pytest.raises(ConfigError, match=f"override {key}=1: cptron anneal takes {key} from the parent"):
        child(tmp_path / "run", 700, PER_STEP, [f"{key}=1"])


def test_write_only_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file beside the child's directory, the rates on the screen, and nothing in the parent; twice is as once,
    over an edited file never."""
    make_run(tmp_path / "run", [700])
    before = snapshot(tmp_path / "run")
    words = [
        str(tmp_path / "run"),
        "--from",
        "700",
        "--tokens",
        "12.8K",
        "--write",
        "optim.decay_form=linear",
    ]
    assert main(words) == main(words) == 0
    shown = capsys.readouterr().out
    assert f"start it with: cptron train {tmp_path}/run-anneal-700.yaml" in shown
    assert ["700", "179,200", "decay", "1.650000e-04"] in [line.split() for line in shown.splitlines()]
    assert snapshot(tmp_path / "run") == before and not (tmp_path / "run-anneal-700").exists()
    made = tmp_path / "run-anneal-700.yaml"
    assert load_config(made).config.train.steps == 750
    made.write_text(made.read_text().replace("linear", "cosine"))
    with pytest.raises(ConfigError, match=r"run-anneal-700.yaml exists with other values; go on with it by"):
        main(words)


@pytest.mark.parametrize("tokens", ["0", "x", "5Q", "-3B", "inf"])
def test_tokens_are_a_number(tokens: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--from", "1", f"--tokens={tokens}"])
    assert "must be a number of tokens from 1" in capsys.readouterr().err


def test_several_ranks_do_not_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a launcher the file is written once, beforehand."""
    make_run(tmp_path / "run", [700])
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [str(tmp_path / "run"), "--from", "700", "--tokens", "500"]
    with pytest.raises(ConfigError, match="was started as 2 ranks; run it once with --write"):
        main(words)
    assert main([*words, "--write"]) == 0


def test_schedule_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates on both sides of every border, and a picture that loads nothing."""
    make_run(tmp_path / "run", [])
    picture = tmp_path / "rates.html"
    words = [str(tmp_path / "run/config.yaml"), "optim.anneal_steps=100", "optim.decay_form=geometric"]
    assert cptron(["schedule", *words, "--html", str(picture)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    rates = {int(row[0]): float(row[-1]) for row in rows}
    assert {0, 9, 10, 609, 610, 899, 900, 999} <= rates.keys()
    assert rates[9] == 3e-4 and rates[610] == rates[899] == 1.65e-4
    assert "<polyline" in picture.read_text() and "<script" not in picture.read_text()
