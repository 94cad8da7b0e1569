"""`cptron checkpoint` on a real run, what its rules kept, and the room that its checkpoints were said to take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import records
from tiny_world import ONE, Layout, World

from cptron.checkpoint import layout
from cptron.checkpoint import main as checkpoint_main
from cptron.checkpoint.in_use import unread
from cptron.checkpoint.layout import list_checkpoints, read_manifest
from cptron.checkpoint.retention import Milestone, Rules, Saved, kept
from cptron.checkpoint.run_lock import sole_writer
from cptron.checkpoint.space import checkpoint_bytes
from cptron.checkpoint.verify import damage
from cptron.cli import main
from cptron.config.load import load_config

METRIC = "valid/general/loss_nats_per_token"
RULES = [
    "checkpoint.keep_last=1",
    "checkpoint.keep_every_tokens=1000",
    "checkpoint.keep_best=1",
    f"checkpoint.best_metric={METRIC}",
    "checkpoint.milestones=[{name: early, tokens: 300}]",
]


@pytest.fixture(scope="module")
def kept_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps, evaluated and saved at each second one, under all rules."""
    words = ["train.steps=12", "eval.every_steps=2", "checkpoint.every_steps=2", "optim.lr=0.05", *RULES]
    short = ["data.valid.domain.max_tokens=100", "data.valid.general.max_tokens=200"]
    return world.trained(tmp_path_factory.mktemp("kept") / "run", ONE, *words, *short)


@pytest.fixture
def run(kept_run: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(kept_run, tmp_path / "run"))


def steps(run: Path) -> list[int]:
    """Those of the run's checkpoints."""
    return [step for step, _ in list_checkpoints(run / "checkpoints")]


def test_a_run_keeps_what_its_rules_say(kept_run: Path) -> None:
    """As computed at the end from its metrics; a checkpoint holds what was evaluated at its step."""
    evaluated = {record["step"]: record for record in records(kept_run, "eval")}
    tokens = {record["step"]: record["tokens_total"] for record in records(kept_run, "step")}
    saved = [Saved(step, tokens[step], {METRIC: evaluated[step][METRIC]}) for step in range(2, 13, 2)]
    rules = Rules(
        keep_last=1,
        keep_every_tokens=1000,
        keep_best=1,
        best_metric=METRIC,
        milestones=(Milestone("early", 300),),
    )
    assert steps(kept_run) == sorted(kept(saved, rules))
    assert 2 < len(steps(kept_run)) < 6 and steps(kept_run)[0] == 2
    for step, path in list_checkpoints(kept_run / "checkpoints"):
        assert read_manifest(path).metrics[METRIC] == evaluated[step][METRIC]


def test_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Why each is kept; what is damaged, and what a killed process left."""
    step = steps(run)[0]
    (run / "checkpoints" / f"step_{step:08d}" / "state.json").unlink()
    (run / "checkpoints" / ".writing_step_00000099").mkdir()
    assert main(["checkpoint", "list", str(run)]) == 0
    header, _, *lines, below = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["step", "tokens", "size"] and "general nats/token" in header
    assert (
        " damaged " in lines[0]
        and lines[0].endswith("no rule deletes what is damaged")
        and "state.json is missing" in below
    )
    assert "newest, last 1" in lines[-2] and "complete" in lines[-2]
    assert lines[-1].split()[0] == "99" and "writing was cut off" in lines[-1]
    assert main(["checkpoint", "list", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [item["step"] for item in facts] == [*steps(run), 99]
    assert facts[-2]["metrics"][METRIC] > 0
    with sole_writer(run):
        main(["checkpoint", "list", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)[-1]["state"] == "being written"


def test_show_is_inspect(run: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run's newest; the lineage goes back to the model that was converted."""
    newest = run / "checkpoints" / f"step_{steps(run)[-1]:08d}"
    assert main(["checkpoint", "show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(newest), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shown
    assert shown["lineage"] == [f"{world.base}: step 0, 0 tokens", "hf: Hugging Face model"]
    assert set(shown["ledger"]) == {"domain", "general"}


def test_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a checkpoint, and for each bad file of one; exit code 2 when there is any."""
    assert main(["checkpoint", "verify", str(run), "--threads", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(steps(run)) and all(": good; " in line for line in lines)
    bad = run / "checkpoints" / f"step_{steps(run)[0]:08d}"
    for name in ("state.json", "hugging_face/config.json"):
        data = bytearray((bad / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bad / name).write_bytes(data)
    assert main(["checkpoint", "verify", str(run)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [name in line for name, line in zip(("config.json", "state.json"), lines, strict=False)] == [
        True,
        True,
    ]
    assert len(lines) == len(steps(run)) + 1
    assert main(["checkpoint", "verify", str(bad), "--json"]) == 2
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["damage"]) == 2
    assert main(["checkpoint", "verify", str(bad.parent / "step_00000001")]) == 2
    assert "does not exist" in capsys.readouterr().out


def test_prune_and_promote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run deletes nothing; what is promoted stays until that is taken back; the newest is proven first."""
    before = steps(run)
    first, *others, newest = before
    assert main(["checkpoint", "prune", str(run), "--yes"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n" and steps(run) == before
    assert main(["checkpoint", "promote", str(run), str(others[0]), "--name", "paper"]) == 0
    words = ["checkpoint", "prune", str(run), "--keep-last", "1"]
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert steps(run) == before
    assert out.count("would remove") == len(others) - 1 and f"step_{first:08d}" not in out  # the milestone's
    with sole_writer(run):
        assert main([*words, "--dry-run"]) == 0
        assert out.endswith(capsys.readouterr().out) and steps(run) == before
        assert main([*words, "--yes"]) == 2
    assert "is being written by pid" in capsys.readouterr().err and steps(run) == before
    path = run / "checkpoints" / f"step_{newest:08d}" / "state.json"
    text = path.read_text()
    path.write_text(text.replace("0", "1", 1))
    assert main([*words, "--yes"]) == 2
    assert "nothing was removed" in capsys.readouterr().err and steps(run) == before
    path.write_text(text)
    assert main([*words, "--yes"]) == 0
    assert steps(run) == [first, others[0], newest]
    assert main(["checkpoint", "promote", str(run), str(others[0]), "--name", "paper", "--remove"]) == 0
    assert main([*words, "--yes"]) == 0
    assert steps(run) == [first, newest]


def test_wrong_words(run: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one line, and nothing is deleted."""
    before = steps(run)
    for words, message in {
        ("list", str(world.base)): "has no checkpoints directory",
        ("promote", str(run), "77", "--name", "x"): "step_00000077 does not exist; give a run, one of",
        ("promote", str(run), "12", "--name", ""): "mark '' must be printable text",
        ("verify", str(run), "--threads", "-1"): "--threads=-1 must not be negative",
        ("prune", str(run), "--yes", "--keep-best", "1", "--best-metric", "valid/general/los"): (
            f"was measured at no checkpoint of {run / 'checkpoints'}; use valid/domain/loss"
        ),
        ("prune", str(run), "--dry-run", "--keep-best", "2"): "the metric goes with --keep-best",
        ("prune", str(run), "--dry-run", "--keep-last", "-1"): "must be from 0",
    }.items():
        assert main(["checkpoint", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert steps(run) == before


def test_a_run_without_rules(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keeps all; who wants to delete is told how."""
    path = run / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "  keep_" not in line and "best_metric" not in line))
    assert main(["checkpoint", "prune", str(run), "--yes"]) == 0
    assert "no rule that deletes; give --keep-last N" in capsys.readouterr().out
    assert main(["checkpoint", "list", str(run)]) == 0
    assert (
        capsys.readouterr().out.count("nothing is deleted") == len(steps(run)) - 2
    )  # beside milestone and newest


def test_verify_beside_a_run_that_deletes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is gone when its turn comes is no damage; what is being read does not go."""
    there = list_checkpoints(run / "checkpoints")
    gone = (1, run / "checkpoints" / "step_00000001")
    monkeypatch.setattr(layout, "list_checkpoints", lambda checkpoints: [gone, *there])
    seen = []

    def watched(directory: Path, **_: int) -> list[str]:
        with unread(directory) as free:
            seen.append((directory, free))
        return damage(directory)

    monkeypatch.setattr(checkpoint_main, "damage", watched)
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(there)
    assert seen == [(gone[1], True), *((path, False) for _, path in there)]


@pytest.mark.parametrize(
    "words",
    [
        ["train.precision=fp32"],
        ["train.precision=bf16", "optim.frozen=['*word_embeddings*']"],
        ["train.precision=bf16", "optim.moments=bf16"],
        ["train.precision=bf16", "optim.name=sgd"],
        ["train.precision=bf16", "parallel.tp=2"],
        ["train.precision=fp32", "adapter.kind=dora", "adapter.rank=64"],
    ],
    ids=" ".join,
)
def test_the_room_a_checkpoint_takes(words: list[str], world: World, tmp_path: Path) -> None:
    """Within 5 % of what is written, also for this tiny model, of which small files are a large part."""
    small = ["train.steps=1", "eval.at_start=false", "optim.warmup_steps=0", "eval.every_steps=0"]
    overrides = [*words, *small, "data.valid=[]"]
    where = Layout(2, tp=2) if "parallel.tp=2" in words else ONE
    run = world.trained(tmp_path / "run", where, *overrides)
    ((_, path),) = list_checkpoints(run / "checkpoints")
    manifest = read_manifest(path)
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    config = load_config(world.config, overrides).config
    assert checkpoint_bytes(config, manifest.arch, world.base) == pytest.approx(written, rel=0.05)
