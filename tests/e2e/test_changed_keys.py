"""Values that change between two starts of a run: listed, refused until they are named, or refused for good."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import rank_calls
import torch
from commands import records, snapshot, steps
from shard_files import sign
from tiny_world import ONE, Layout, World, interrupted, save_tokenizer, tokenize, write_corpus

from cptron.checkpoint.layout import list_checkpoints
from cptron.checkpoint.reader import ShardReader
from cptron.data.source import TokenSource
from cptron.testing import run_ranks
from cptron.train.claim import CHANGES

TWO = Layout(2, tp=2)


def state(run: Path, step: int) -> dict[str, Any]:
    """`state.json` of a checkpoint."""
    path = run / "checkpoints" / f"step_{step:08d}" / "state.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def accounts(run: Path, step: int) -> dict[str, Any]:
    """The ledger of a checkpoint."""
    return state(run, step)["ledger"]["entries"]  # type: ignore[no-any-return]


def refused(run: Path, outcomes: list[rank_calls.Outcome], before: dict[str, tuple[int, int]]) -> str:
    """The one line that all ranks say; nothing of the run has changed."""
    (line,) = {outcome.error for outcome in outcomes}
    assert line.startswith("ConfigError: ") and "\n" not in line
    assert snapshot(run) == before
    return line


@pytest.mark.more
def test_an_accepted_seed_draws_everything_anew(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Refused on all ranks with both values and the very words that accept it; with them, every source begins anew in
    the new order, the old accounts stay on record, and the acceptance is kept. Starting once more changes nothing."""
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    line = refused(run, world.train(run, TWO, "run.seed=99"), snapshot(run))
    assert "since step 10: run.seed 1234 -> 99" in line
    assert "accept the change by name: 'run.accept_changes=[run.seed]'" in line

    changes = ("run.seed=99", "run.accept_changes=[run.seed, data.packing]", "train.steps=14")
    outcomes = world.train(run, ONE, *changes)
    assert not outcomes[0].error
    assert "changed since step 10 and accepted: run.seed 1234 -> 99; the account" in outcomes[0].stdout
    assert "run.accept_changes names data.packing: not changed since step 10" in outcomes[0].stdout
    before, after = accounts(run, 10), accounts(run, 14)
    assert after["domain.until_step_00000010"] == before["domain"] | {"share": 0.0, "since_mix": 0}
    assert after["general.until_step_00000010"] == before["general"] | {"share": 0.0, "since_mix": 0}
    drawn = {name: after[name] for name in ("domain", "general")}
    assert sum(entry["cursor"] for entry in drawn.values()) == 4 * 8
    for name, entry in drawn.items():
        source = TokenSource(name, str(world.tokens(name)), 32, 99)
        assert entry["tokens"] == sum(source.count([number])[1] for number in range(entry["cursor"]))
    (entry,) = [json.loads(line) for line in (run / CHANGES).read_text().splitlines()]
    assert entry["step"] == 10
    (change,) = entry["accepted"]
    assert (change["key"], change["before"], change["now"]) == ("run.seed", "1234", "99")

    newest = run / "checkpoints" / "step_00000014" / "state.json"
    newest.write_text(newest.read_text().replace("0", "1", 1))  # its size is right, its hash is not
    first = steps(run)
    again = world.train(run, ONE, *changes)
    assert not again[0].error and steps(run) == first
    assert "passed over" in again[0].stdout and "since step 10 and accepted: run.seed" in again[0].stdout
    assert accounts(run, 14) == after
    world.trained(run, ONE, *changes, "train.steps=15")
    assert accounts(run, 15)["domain.until_step_00000010"] == after["domain.until_step_00000010"]
    assert accounts(run, 15)["domain"]["cursor"] > after["domain"]["cursor"]
    assert "run.seed 99 -> 1234" in world.train(run, ONE, "train.steps=16")[0].error
    assert len((run / CHANGES).read_text().splitlines()) == 2


def test_accepted_content_begins_at_its_beginning(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """One source has other tokens: its account alone starts anew, the other goes on; the audit says where it ends."""
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    corpus = write_corpus(tmp_path / "fresh.jsonl", ["index", "planner", "query"], 60, seed=8)
    fresh = tokenize(corpus, world.hugging_face, "--append-eod")
    other = f"data.sources.domain.path={fresh}"
    line = refused(run, world.train(run, ONE, other), snapshot(run))
    assert (
        "data.sources.domain.content" in line and "run.accept_changes=[data.sources.domain.content]" in line
    )
    world.trained(run, ONE, other, "run.accept_changes=[data.sources.domain.content]", "train.steps=12")
    before, after = accounts(run, 10), accounts(run, 12)
    assert after["domain.until_step_00000010"] == before["domain"] | {"share": 0.0, "since_mix": 0}
    assert after["domain"]["identity"] == TokenSource("domain", str(fresh), 32, 1234).identity
    assert 0 < after["domain"]["cursor"] <= 16
    assert after["general"]["cursor"] == before["general"]["cursor"] + 16 - after["domain"]["cursor"]
    audited = rank_calls.command(["data", "ledger", str(run)])
    assert "domain.until_step_00000010" in audited.error and "not across it" in audited.error
    assert [record["step"] for record in records(run, "start")] == [0, 10]


def test_changes_that_no_name_makes_possible(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """What the stored state is of: said at once, and without the ranks having loaded anything."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    before = snapshot(run)
    for changes, words in {
        ("optim.name=sgd",): 'optim.name "adamw" -> "sgd" (the stored state is that optimizer\'s)',
        ('optim.frozen=["*norm*"]',): 'optim.frozen [] -> ["*norm*"]',
        ("adapter.kind=lora",): 'adapter.kind "none" -> "lora"',
    }.items():
        line = refused(run, world.train(run, ONE, *changes), before)
        assert words in line and "named or not" in line and "choose another run.dir" in line


def test_another_shape_is_refused(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """Even where the other base is accepted: the fields that differ are named."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    architecture = json.loads((base / "manifest.json").read_text())["architecture"] | {"ffn_hidden_size": 96}
    sign(base, architecture=architecture, weights_fingerprint="0" * 64)
    before, words = snapshot(run), (f"start.checkpoint={base}", "run.accept_changes=[start]")
    line = refused(run, world.train(run, ONE, *words), before)
    assert "model ffn_hidden_size=128 -> ffn_hidden_size=96" in line


@pytest.mark.parametrize("accepted", [False, True])
def test_another_base_of_the_same_shape(
    accepted: bool, world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Refused, or accepted by name: then the run goes on as if nothing had changed, but for its identity."""
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    fingerprint = json.loads((base / "manifest.json").read_text())["weights_fingerprint"]
    sign(base, weights_fingerprint="0" * 64)
    before = snapshot(run)
    if not accepted:
        line = refused(run, world.train(run, ONE, f"start.checkpoint={base}"), before)
        assert "'run.accept_changes=[start]'" in line and f"start {fingerprint[:12]}" in line
        return
    world.trained(run, ONE, f"start.checkpoint={base}", "run.accept_changes=[start]")
    assert steps(run) == steps(whole_runs[ONE])
    assert json.loads((run / "run.json").read_text())["identity"]["start"] == "0" * 64


@pytest.mark.more
def test_an_accepted_precision(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """fp32 goes on in bf16, on the same curve but for the rounding."""
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    line = refused(run, world.train(run, ONE, "train.precision=bf16"), snapshot(run))
    assert "'run.accept_changes=[train.precision]'" in line
    world.trained(run, ONE, "train.precision=bf16", "run.accept_changes=[train.precision]", "train.steps=14")
    losses = [
        [record["loss_nats_per_token"] for record in steps(each)[:14]] for each in (run, whole_runs[ONE])
    ]
    assert losses[0][:10] == losses[1][:10] and losses[0][10:] != losses[1][10:]
    assert losses[0][10:] == pytest.approx(losses[1][10:], abs=0.03)


def test_an_accepted_tokenizer(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """Data made with another one of the same size: it and every source's content must be named."""
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    corpora = [
        write_corpus(tmp_path / f"{name}.jsonl", ["zebra", "quartz", name], 60, seed=9) for name in ("a", "b")
    ]
    save_tokenizer(tmp_path / "tokenizer", corpora, vocab_size=280)
    prefixes = [tokenize(corpus, tmp_path / "tokenizer", "--append-eod") for corpus in corpora]
    words = [
        f"data.sources.{name}.path={path}" for name, path in zip(("domain", "general"), prefixes, strict=True)
    ]
    words += [
        f"data.tokenizer={tmp_path / 'tokenizer'}",
        "data.valid=[]",
        "eval.every_steps=0",
        "eval.at_start=false",
    ]
    line = refused(run, world.train(run, ONE, *words), snapshot(run))
    asked = "run.accept_changes=[tokenizer, data.sources.domain.content, data.sources.general.content]"
    assert f"'{asked}'" in line
    assert "tokenizer" in refused(
        run, world.train(run, ONE, *words, asked.replace("tokenizer, ", "")), snapshot(run)
    )
    world.trained(run, ONE, *words, asked, "train.steps=11")
    assert accounts(run, 11)["domain"]["cursor"] + accounts(run, 11)["general"]["cursor"] == 8
    carried = run / "checkpoints" / "step_00000011" / "hugging_face" / "tokenizer.json"
    assert carried.read_bytes() == (world.hugging_face / "tokenizer.json").read_bytes()
    world.trained(run, ONE, *words, "train.steps=12")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(["data.seq_length=16", "data.packing=best_fit"], marks=pytest.mark.more),
        ["data.order=megatron", "data.megatron_samples=400"],
    ],
    ids=" ".join,
)
def test_another_order_begins_at_its_beginning(
    changes: list[str], world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Samples of another length, packing or order are counted from 0, and drawn as a new run would."""
    words = [*changes, "data.valid=[]", "eval.every_steps=0", "eval.at_start=false", "train.steps=12"]
    run = interrupted(whole_runs[ONE], tmp_path / "run")
    keys = ", ".join(change.split("=")[0] for change in changes if "samples" not in change)
    line = refused(run, world.train(run, ONE, *words), snapshot(run))
    assert f"'run.accept_changes=[{keys}]'" in line
    world.trained(run, ONE, *words, f"run.accept_changes=[{keys}]")
    new = world.trained(tmp_path / "new", ONE, *words, "train.steps=2", "optim.warmup_steps=0")
    for name, entry in accounts(new, 2).items():
        assert accounts(run, 12)[name] == entry
        assert accounts(run, 12)[f"{name}.until_step_00000010"]["cursor"] == accounts(run, 10)[name]["cursor"]


def weights(run: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The parameters of the newest checkpoint in fp32, or their state of that prefix, by the parameters' names."""
    reader = ShardReader(list_checkpoints(run / "checkpoints")[-1][1] / "shards")
    names = [key.removeprefix(prefix) for key in reader.keys if key.startswith(prefix)]
    found = {
        name: torch.empty(reader.shape(prefix + name)) for name in names if not name.startswith("optimizer.")
    }
    for name, tensor in found.items():
        reader.read_into(prefix + name, (0,) * tensor.dim(), tensor)
    return found


def train_reading_slowly(config: str, overrides: list[str]) -> rank_calls.Outcome:
    """Train; one weight is so slow to read that all else has been read before."""
    from cptron.checkpoint import sharded

    read = sharded._read_part

    def slowly(reader: Any, part: Any) -> None:
        if part.key == "decoder.final_layernorm.weight":
            time.sleep(1)
        read(reader, part)

    sharded._read_part = slowly
    try:
        return rank_calls.train(config, overrides)
    finally:
        sharded._read_part = read


def test_fp32_goes_on_from_the_masters(world: World, tmp_path: Path) -> None:
    """Not from the bf16 weights that stand beside them: after a step that changes nothing all weights are the masters,
    to the bit."""
    words = ["data.valid=[]", "eval.every_steps=0", "eval.at_start=false", "optim.warmup_steps=0"]
    run = world.trained(tmp_path / "run", ONE, "train.precision=bf16", "train.steps=2", *words)
    masters = weights(run, "optimizer.state.param.")
    still = ["optim.lr=1.0e-30", "optim.lr_min=0", "start.gate_tolerance_nats=0.03", "train.steps=3"]
    changed = [
        f"run.dir={run}",
        "train.precision=fp32",
        "run.accept_changes=[train.precision]",
        *words,
        *still,
    ]
    (outcome,) = run_ranks(train_reading_slowly, 1, str(world.config), changed)
    assert not outcome.error
    found = weights(run)
    assert found.keys() == masters.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, masters[name])] == []
