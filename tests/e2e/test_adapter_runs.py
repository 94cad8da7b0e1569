"""LoRA and DoRA from the command line: trained, resumed, evaluated, exported, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import rank_calls
import torch
from commands import assert_close, call, cptron, error_lines, evals, snapshot, steps
from shard_files import sign
from tiny_world import ONE, SEQ_LENGTH, SHORT, Layout, World, command, interrupted

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.reader import ShardReader
from cptron.inspect_run import num_parameters
from cptron.testing import run_ranks

KINDS = ["lora", "dora"]
OTHERS = {"lora": Layout(2, tp=2), "dora": Layout(2, pp=2, virtual_stages=2)}
"""A layout for each kind, other than one rank."""
WIDEST = Layout(4, tp=2, cp=2)


def settings(kind: str) -> list[str]:
    """A short run with an adapter whose scale is no power of two, and a rate at which it moves."""
    return [*SHORT, f"adapter.kind={kind}", "adapter.rank=4", "adapter.alpha=6.0", "optim.lr=1.0e-2"]


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Six steps of each kind on one rank, with checkpoints and evaluations at steps 3 and 6."""
    root = tmp_path_factory.mktemp("adapters")
    return {kind: world.trained(root / kind, ONE, *settings(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def merged(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs as whole Hugging Face models."""
    root = tmp_path_factory.mktemp("merged")
    for kind, run in runs.items():
        assert command("export", "--merge", run, root / kind).error == ""
    return {kind: root / kind for kind in KINDS}


def moved(base: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint, whose manifest says something else where asked for."""
    shutil.copytree(base, target)
    sign(target, **changes)
    return target


def one_line(outcomes: list[rank_calls.Outcome]) -> str:
    """What every rank says alike, on one line."""
    (line,) = {outcome.error for outcome in outcomes}
    assert line and "\n" not in line
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_holds_the_adapter_alone(kind: str, world: World, runs: dict[str, Path]) -> None:
    """Training learns something, and no tensor of a checkpoint, nor of the optimizer in it, is the base's."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    first, *_, last = evals(runs[kind])
    assert last["valid/domain/loss_nats_per_token"] < first["valid/domain/loss_nats_per_token"] - 0.3
    checkpoint = checkpoint_layout.resolve(str(runs[kind]))
    stored = FileSystemReader(checkpoint / checkpoint_layout.SHARDS).read_metadata().state_dict_metadata
    tensors = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    assert tensors
    assert all(".adapter." in name for name in tensors), tensors
    numbers = sum(entry.size.numel() for name, entry in tensors.items() if not name.startswith("optimizer."))
    base, found = (checkpoint_layout.read_manifest(path) for path in (world.base, checkpoint))
    assert found.base_fingerprint == base.weights_fingerprint
    assert numbers < num_parameters(base.arch) / 8


@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.more)])
def test_resumes_to_the_bit_and_under_another_layout(
    kind: str, world: World, runs: dict[str, Path], tmp_path: Path
) -> None:
    """The gate passes with base and adapter together, and the curve goes on."""
    whole = runs[kind]
    (outcome,) = world.train(interrupted(whole, tmp_path / "same"), ONE, *settings(kind))
    assert outcome.error == "" and "step-0 gate passed" in outcome.stdout
    assert steps(tmp_path / "same") == steps(whole)
    run = interrupted(whole, tmp_path / "other")
    gated = world.train(run, OTHERS[kind], *settings(kind))
    assert {outcome.error for outcome in gated} == {""}
    assert "step-0 gate passed" in gated[0].stdout
    assert_close(steps(run), steps(whole))
    assert_close(evals(run), evals(whole))


@pytest.mark.more
def test_the_cut_changes_no_number(world: World, runs: dict[str, Path], tmp_path: Path) -> None:
    """The same run on four ranks, with recomputation; its checkpoint goes on where it was alone."""
    words = [*settings("dora"), "memory.recompute=full"]
    run = world.trained(tmp_path / "run", WIDEST, *words, "train.steps=3")
    world.trained(run, ONE, *words)
    assert_close(steps(run), steps(runs["dora"]))
    assert_close(evals(run), evals(runs["dora"]))


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_what_was_trained(
    kind: str, world: World, runs: dict[str, Path], merged: dict[str, Path], tmp_path: Path
) -> None:
    """Logits of the engine, of the merged model and of PEFT on the base are within 1e-4 of each other."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    verified = command("verify", runs[kind], merged[kind], "--tolerance", "1e-4")
    assert verified.error == ""
    assert "not the same model" in command("verify", runs[kind], world.hugging_face).error
    assert command("export", runs[kind], tmp_path / "peft").error == ""
    model = AutoModelForCausalLM.from_pretrained(world.hugging_face, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    whole = AutoModelForCausalLM.from_pretrained(merged[kind], dtype=torch.float32).eval()
    tokens_BS = torch.arange(64).view(2, 32) * 4 + 1
    with torch.no_grad():
        assert float((model(tokens_BS).logits - whole(tokens_BS).logits).abs().max()) <= 1e-4
    assert (merged[kind] / "tokenizer.json").read_bytes() == (
        world.hugging_face / "tokenizer.json"
    ).read_bytes()
    assert "already exists" in command("export", runs[kind], tmp_path / "peft").error


@pytest.mark.parametrize("kind", KINDS)
def test_eval_of_an_adapter(kind: str, world: World, runs: dict[str, Path], merged: dict[str, Path]) -> None:
    """`cptron eval` of the run is its last record, and that of the merged model in `transformers`."""
    last = evals(runs[kind])[-1]
    flags = ("--seq-length", str(SEQ_LENGTH), "--max-tokens", "600")
    ours = command("eval", "--checkpoint", runs[kind], "--data", world.tokens("domain_valid"), *flags)
    theirs = command("eval", "--hugging-face", merged[kind], "--data", world.corpus("domain_valid"), *flags)
    for done, tolerance in ((ours, 1e-5), (theirs, 1e-4)):
        assert done.error == ""
        found = json.loads(done.stdout)
        assert found["tokens"] == last["valid/domain/tokens"]
        assert found["loss_nats_per_token"] == pytest.approx(
            last["valid/domain/loss_nats_per_token"], rel=tolerance
        )


@pytest.mark.more
def test_in_bf16(world: World, tmp_path: Path) -> None:
    """Masters go on to the bit, and what is exported is in bf16 and the same model."""
    words = [*settings("dora"), "train.precision=bf16"]
    whole = world.trained(tmp_path / "whole", OTHERS["lora"], *words)
    run = world.trained(interrupted(whole, tmp_path / "run"), OTHERS["lora"], *words)
    assert steps(run) == steps(whole)
    assert command("export", "--merge", run, tmp_path / "hf").error == ""
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    last = evals(run)[-1]
    words = ["--seq-length", str(SEQ_LENGTH), "--max-tokens", "600"]
    found = command("eval", "--hugging-face", tmp_path / "hf", "--data", world.corpus("domain_valid"), *words)
    assert json.loads(found.stdout)["loss_nats_per_token"] == pytest.approx(
        last["valid/domain/loss_nats_per_token"], rel=2e-2
    )


def test_inspect_says_what_it_holds(world: World, runs: dict[str, Path]) -> None:
    """An adapter, its settings and its base; and the position in the data, as of any run."""
    checkpoint = checkpoint_layout.resolve(str(runs["dora"]))
    facts = json.loads(command("inspect", checkpoint, "--json").stdout)
    assert facts["holds"].startswith("an adapter without its base's weights")
    assert (facts["adapter"]["kind"], facts["adapter"]["rank"]) == ("dora", 4)
    assert facts["base"]["checkpoint"] == str(world.base.resolve())
    assert facts["ledger"].keys() == {"domain", "general"}
    text = command("inspect", checkpoint)
    assert text.error == "" and "dora" in text.stdout
    assert command("inspect", runs["dora"]).error == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("adapter.rank=8", ("adapter.rank 4 -> 8", "choose another run.dir")),
        ("adapter.targets=[q_proj]", ("adapter.targets [", "choose another run.dir")),
        ("adapter.kind=none", ('adapter.kind "lora" -> "none"',)),
    ],
)
def test_another_adapter_is_another_run(
    change: str, words: tuple[str, ...], world: World, runs: dict[str, Path]
) -> None:
    """Exit code 2 and one line that names the setting; every file stays."""
    before = snapshot(runs["lora"])
    overrides = [f"run.dir={runs['lora']}", *settings("lora"), change, "train.steps=9"]
    done = call(cptron("train", world.config, *overrides), 240)
    assert done.returncode == 2, done.stderr
    (line,) = error_lines(done.stderr)
    assert all(word in line for word in words), line
    assert snapshot(runs["lora"]) == before


def test_an_adapter_is_no_start(world: World, runs: dict[str, Path], tmp_path: Path) -> None:
    """Neither for whole training nor for another adapter; the line says what makes it one, and that works."""
    for words in (SHORT, settings("lora")):
        line = one_line(
            world.train(tmp_path / "run", OTHERS["lora"], *words, f"start.checkpoint={runs['lora']}")
        )
        assert "holds an adapter" in line and "cptron export --merge" in line
    assert not (tmp_path / "run").exists()
    assert command("export", "--merge", runs["lora"], tmp_path / "hf").error == ""
    assert command("convert", tmp_path / "hf", tmp_path / "base").error == ""
    run = world.trained(
        tmp_path / "run", ONE, *SHORT, f"start.checkpoint={tmp_path / 'base'}", "train.steps=2"
    )
    ours, theirs = (evals(run)[0], evals(runs["lora"])[-1])
    key = "valid/domain/loss_nats_per_token"
    assert ours[key] == pytest.approx(theirs[key], rel=1e-4)


@pytest.mark.more
def test_a_base_may_move_but_not_change(world: World, runs: dict[str, Path], tmp_path: Path) -> None:
    """A copy of the base will do; another fingerprint, or no base, is one line on every rank."""
    there = moved(world.base, tmp_path / "there")
    run = interrupted(runs["lora"], tmp_path / "run")
    before = snapshot(run)
    other = moved(world.base, tmp_path / "other", weights_fingerprint="0" * 64)
    for start, words in (
        (other, ("cannot change so", "start ", "the stored adapter belongs to those weights")),
        (tmp_path / "absent", ("absent does not exist",)),
    ):
        line = one_line(world.train(run, OTHERS["lora"], *settings("lora"), f"start.checkpoint={start}"))
        assert all(word in line for word in words), line
    assert snapshot(run) == before
    world.trained(run, OTHERS["lora"], *settings("lora"), f"start.checkpoint={there}")
    assert_close(steps(run), steps(runs["lora"]))
    manifest = checkpoint_layout.read_manifest(checkpoint_layout.resolve(str(run)))
    assert manifest.base == str(there)

    shutil.rmtree(there)
    data = ("--data", str(world.tokens("domain_valid")), "--seq-length", "32", "--max-tokens", "64")
    for arguments in (
        ("eval", "--checkpoint", str(run), *data),
        ("verify", str(run), str(world.hugging_face)),
        ("export", "--merge", str(run), str(tmp_path / "hf")),
    ):
        line = one_line(run_ranks(rank_calls.command, 1, list(arguments)))
        assert f"{there} does not exist" in line and "--base" in line, line
        line = one_line(run_ranks(rank_calls.command, 1, [*arguments, "--base", str(other)]))
        assert "was trained on" in line
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / ".writing_hf").exists()
    base = ("--base", world.base)
    assert command("export", "--merge", run, tmp_path / "hf", *base).error == ""
    assert command("verify", run, tmp_path / "hf", "--tolerance", "1e-4", *base).error == ""
    assert command("eval", "--checkpoint", run, *data, *base).error == ""
    assert command("export", run, tmp_path / "peft").error == ""  # needs no base


def test_an_adapter_on_a_trained_run(world: World, tmp_path: Path) -> None:
    """The base may be a run's own checkpoint, whose optimizer is not wanted; a run without adapter gets none."""
    base = world.trained(tmp_path / "base", ONE, *SHORT, "train.steps=2")
    words = [*settings("dora"), f"start.checkpoint={base}", "train.steps=3"]
    run = world.trained(tmp_path / "run", Layout(2), *words)
    assert evals(run)[0]["valid/domain/loss_nats_per_token"] == pytest.approx(
        evals(base)[-1]["valid/domain/loss_nats_per_token"], rel=1e-4
    )
    line = one_line(world.train(base, ONE, *settings("lora"), "train.steps=3"))
    assert 'adapter.kind "none" -> "lora"' in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("adapter.targets=[q_proj,lm_head]",), ("'lm_head'", "adapter.targets")),
        (("adapter.rank=0",), ("adapter.rank=0",)),
        (("optim.frozen=['*layers.0*']",), ("optim.frozen", "adapter.kind=lora")),
        (("optim.groups=[{match: '*word_embeddings*'}]",), ("optim.groups", "no trained parameter")),
    ],
    ids=["target", "rank", "frozen", "group"],
)
def test_impossible_adapters_are_refused(
    words: tuple[str, ...], expected: tuple[str, ...], world: World, tmp_path: Path
) -> None:
    """One line on every rank, and nothing left behind."""
    line = one_line(world.train(tmp_path / "run", OTHERS["lora"], *settings("lora"), *words))
    assert all(word in line for word in expected), line
    assert not (tmp_path / "run").exists()


def test_damage_stops_an_export(runs: dict[str, Path], tmp_path: Path) -> None:
    """A flipped bit in the adapter, which is in no checksum of its base: alone and merged, it is named."""
    shutil.copytree(checkpoint_layout.resolve(str(runs["lora"])), tmp_path / "run")
    shards = tmp_path / "run" / checkpoint_layout.SHARDS
    reader = ShardReader(shards)
    key = min(key for key in reader.keys if key.startswith("decoder.") and key.endswith("lora_A"))
    needle = reader.read(key)[1].numpy().tobytes()
    for path in shards.glob("*.distcp"):
        content = bytearray(path.read_bytes())
        if needle in content:
            content[content.index(needle) + 1] ^= 1
            path.write_bytes(content)
    for flags in ((), ("--merge",), ("--merge", "--megatron")):
        line = one_line([command("export", *flags, tmp_path / "run", tmp_path / "out")])
        assert f"holds other weights in {key.replace('layers.', 'layers.1.', 1)} than were recorded" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_megatrons_form_is_of_whole_weights(runs: dict[str, Path], tmp_path: Path) -> None:
    """So an adapter is merged for it; without that it is refused, and merged it has the export's bits."""
    line = one_line([command("export", "--megatron", runs["lora"], tmp_path / "out")])
    assert "holds an adapter, and Megatron-LM's form is of whole weights; add --merge" in line
    assert command("export", "--megatron", "--merge", runs["lora"], tmp_path / "megatron").error == ""
    assert command("export", "--merge", runs["lora"], tmp_path / "hf").error == ""
    words = (tmp_path / "hf", tmp_path / "back")
    assert command("convert", "--megatron", tmp_path / "megatron", *words).error == ""
    assert command("verify", tmp_path / "back", tmp_path / "hf").error == ""
