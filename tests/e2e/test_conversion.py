"""Conversion as its users have it: verified, interrupted, without a checkpoint between, to and from Megatron-LM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, cptron, evals, started, steps
from safetensors.torch import load_file, save_file
from shard_files import sign
from tiny_world import ONE, Layout, World, command

from cptron.checkpoint import layout
from cptron.checkpoint.reader import ShardReader
from cptron.testing import run_ranks

SHORT = ("train.steps=3", "optim.warmup_steps=1", "optim.decay_steps=20", "eval.every_steps=3")


def same_weights(left: Path, right: Path) -> bool:
    """Two model directories hold the same bits under the same names."""
    ours, theirs = (load_file(directory / "model.safetensors") for directory in (left, right))
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)) for name in ours
    )


def test_convert_verifies(world: World, tmp_path: Path) -> None:
    """`--verify` says how many tensors are equal to the bit, and how far the logits are apart."""
    done = call(cptron("convert", "--verify", world.hugging_face, tmp_path / "out"), 240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tensors"] == len(load_file(world.hugging_face / "model.safetensors"))
    assert found["max_abs_logit_difference"] <= 1e-4
    manifest = layout.read_manifest(tmp_path / "out")
    assert manifest.checksums == layout.read_manifest(world.base).checksums
    assert manifest.padded_vocab_size == 384
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "hugging_face",
        "manifest.json",
        "manifest.sha256",
        "shards",
    ]


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"])
def test_verify_names_a_tensor_that_differs(name: str, world: World, tmp_path: Path) -> None:
    """By one bit, which no logit would show."""
    shutil.copytree(world.hugging_face, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors[name].view(torch.int32).view(-1)[3] ^= 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    outcome = command("verify", world.base, tmp_path / "other")
    assert f"differ in 1 tensor(s), first {name}" in outcome.error


@pytest.mark.more
def test_a_killed_conversion_goes_on(world: World, tmp_path: Path) -> None:
    """SIGKILL while it writes: nothing under the final name; the same command ends with the same checkpoint."""
    out = tmp_path / "out"
    slow = (
        "import sys, time\n"
        "from cptron.checkpoint import block_file\n"
        "from cptron.convert import shard_stream\n"
        "from cptron.cli import main\n"
        "shard_stream.FILE_BYTES = 20000\n"
        "write = block_file.BlockFile.write\n"
        "block_file.BlockFile.write = lambda *a: (time.sleep(0.1), write(*a))[1]\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    import sys

    with started([sys.executable, "-c", slow, "convert", world.hugging_face, out]) as process:
        deadline = time.monotonic() + 240
        progress = tmp_path / ".writing_out" / "progress"
        while len(list(progress.glob("*.json"))) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=120)
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".writing_out" / "shards").glob("*.distcp")}
    done = call([sys.executable, "-c", slow, "convert", world.hugging_face, out], 240)
    assert done.returncode == 0, done.stderr
    assert layout.read_manifest(out).checksums == layout.read_manifest(world.base).checksums
    unchanged = [
        path for path, when in kept.items() if (out / "shards" / path.name).stat().st_mtime_ns == when
    ]
    assert len(unchanged) >= 3


@pytest.mark.parametrize(
    "cut",
    [
        Layout(2, tp=2),
        *(pytest.param(cut, marks=pytest.mark.more) for cut in (ONE, Layout(2, pp=2), Layout(4, tp=2, cp=2))),
    ],
    ids=str,
)
def test_a_run_starts_from_hugging_face(cut: Layout, world: World, tmp_path: Path) -> None:
    """The same losses as from the converted model, and a checkpoint from which it is resumed and exported."""
    direct = ("start.checkpoint=", f"start.hugging_face={world.hugging_face}")
    run = world.trained(tmp_path / "direct", cut, *direct, *SHORT)
    other = world.trained(tmp_path / "converted", cut, *SHORT)
    assert [record["loss_nats_per_token"] for record in steps(run)] == [
        record["loss_nats_per_token"] for record in steps(other)
    ]
    assert (
        evals(run)[0]["valid/domain/loss_nats_per_token"]
        == evals(other)[0]["valid/domain/loss_nats_per_token"]
    )
    saved = layout.resolve(str(run))
    assert layout.read_manifest(saved).parent == str(world.hugging_face)
    assert layout.read_manifest(saved).checksums == layout.read_manifest(layout.resolve(str(other))).checksums
    world.trained(tmp_path / "direct", cut, *direct, *SHORT, "train.steps=4")
    assert steps(run)[-1]["step"] == 4
    assert command("export", run, tmp_path / "exported").error == ""
    assert (tmp_path / "exported" / "tokenizer.json").is_file()


def test_a_changed_model_is_another_run(world: World, tmp_path: Path) -> None:
    """The identity of a direct start is that of the files' content; and wrong weights are refused before step 0."""
    model = tmp_path / "model"
    shutil.copytree(world.hugging_face, model)
    direct = ("start.checkpoint=", f"start.hugging_face={model}", *SHORT)
    world.trained(tmp_path / "run", ONE, *direct)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (outcome,) = world.train(tmp_path / "run", ONE, *direct)
    assert "start hugging_fa" in outcome.error and "run.accept_changes=[start]" in outcome.error
    (model / "model.safetensors").unlink()
    for outcome in world.train(tmp_path / "new", Layout(2, tp=2), *direct):
        assert outcome.error.startswith("ConversionError")
        assert "model.safetensors does not exist" in outcome.error


def test_direct_start_with_an_adapter_is_refused(world: World, tmp_path: Path) -> None:
    """Its base must be a checkpoint."""
    words = ["start.checkpoint=", f"start.hugging_face={world.hugging_face}", "adapter.kind=lora"]
    done = call(cptron("train", world.config, f"run.dir={tmp_path / 'run'}", *words), 240)
    assert done.returncode == 2
    assert "`cptron convert` makes one for start.checkpoint" in done.stderr


def test_export_makes_the_config_of_the_weights(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Whatever the base's config says; ids of special tokens are the base's."""
    shutil.copytree(layout.resolve(str(whole_runs[ONE])), tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "hugging_face" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": 200, "num_hidden_layers": 1, "rms_norm_eps": 0.5}))
    sign(tmp_path / "checkpoint")
    assert command("export", tmp_path / "checkpoint", tmp_path / "out").error == ""
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    for key in ("vocab_size", "num_hidden_layers", "rms_norm_eps", "eos_token_id", "initializer_range"):
        assert exported[key] == config[key]
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].shape == (300, 64)


@pytest.mark.more
def test_a_model_from_random_weights_is_exported(world: World, tmp_path: Path) -> None:
    """It has no base to take a config from, and needs none."""
    from transformers import AutoModelForCausalLM

    random = (
        "start.mode=random",
        "start.checkpoint=",
        f"model.architecture={world.hugging_face}/config.json",
    )
    run = world.trained(tmp_path / "run", Layout(2, tp=2), *random, *SHORT)
    assert command("export", run, tmp_path / "out").error == ""
    assert command("verify", run, tmp_path / "out").error == ""
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


def test_damage_stops_an_export(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """A flipped bit in the weights: named, and nothing is published."""
    shutil.copytree(layout.resolve(str(whole_runs[ONE])), tmp_path / "checkpoint")
    reader = ShardReader(tmp_path / "checkpoint" / "shards")
    needle = reader.read("decoder.final_layernorm.weight").numpy().tobytes()
    for path in (tmp_path / "checkpoint" / "shards").glob("*.distcp"):
        content = bytearray(path.read_bytes())
        if needle in content:
            content[content.index(needle) + 1] ^= 1
            path.write_bytes(content)
    outcome = command("export", tmp_path / "checkpoint", tmp_path / "out")
    assert "holds other weights in decoder.final_layernorm.weight than were recorded" in outcome.error
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".writing_*"))


def load_with_megatron(directory: str, config: dict[str, Any]) -> list[float]:
    """Losses of a plain megatron-core GPTModel with its own local layers, loaded by its own API; on a rank."""
    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core import dist_checkpointing
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    from cptron.runtime.session import open_session

    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    with open_session(), torch.no_grad():
        settings = TransformerConfig(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            ffn_hidden_size=config["intermediate_size"],
            num_attention_heads=heads,
            num_query_groups=groups,
            normalization="RMSNorm",
            layernorm_epsilon=config["rms_norm_eps"],
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            use_cpu_initialization=True,
            bias_activation_fusion=False,
            masked_softmax_fusion=False,
            bias_dropout_fusion=False,
            apply_rope_fusion=False,
        )
        model = GPTModel(
            settings,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=384,
            max_sequence_length=config["max_position_embeddings"],
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_base=10000,
        ).eval()
        state = {"model": model.sharded_state_dict()}
        loaded, _, _ = dist_checkpointing.load(
            state, directory, strict=dist_checkpointing.validation.StrictHandling.RETURN_ALL
        )
        missing, unexpected = model.load_state_dict(loaded["model"], strict=False)
        assert not [key for key in (*missing, *unexpected) if "_extra_state" not in key]
        assert loaded["iteration"] == 20 and loaded["checkpoint_version"] == 3.0
        assert loaded["args"].num_layers == config["num_hidden_layers"]
        tokens = torch.arange(40)[None] * 7 % 300
        positions = torch.arange(40)[None]
        mask = torch.ones(1, 1, 40, 40).tril() < 0.5
        logits = model(tokens, positions, mask)
        return logits[0, :, :300].double().flatten().tolist()


def test_megatron_core_loads_an_export(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """Through its own API into its own model: the logits are those of the Hugging Face export."""
    from transformers import AutoModelForCausalLM

    run = whole_runs[Layout(4, tp=2, pp=2)]
    assert command("export", "--megatron", run, tmp_path / "megatron").error == ""
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").read_text() == "20\n"
    assert command("export", run, tmp_path / "hf").error == ""
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (found,) = run_ranks(load_with_megatron, 1, str(tmp_path / "megatron" / "iter_0000020"), config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        expected = model(torch.arange(40)[None] * 7 % 300).logits[0]
    difference = (torch.tensor(found).view(40, 300) - expected.double()).abs().max()
    assert difference < 1e-4 * expected.abs().max()


def save_with_megatron(checkpoint: str, target: str, style: str) -> None:
    """The model as users of Megatron-LM have it: saved by megatron-core, with objects beside the tensors; on a rank."""
    from argparse import Namespace

    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    from cptron.checkpoint.weights import open_model
    from cptron.runtime.session import open_session

    with open_session():
        model = open_model(Path(checkpoint))
        metadata = {"singleton_local_shards": True} if style == "layers apart" else {}
        prefix = "module." if style == "prefixed" else ""
        state = model.sharded_state_dict(prefix=prefix, metadata=metadata)
        state["extra"] = ShardedObject(
            "decoder.layers.self_attention.core_attention._extra_state", {}, (1,), (0,)
        )
        iteration = Path(target) / "iter_0000007"
        iteration.mkdir(parents=True)
        dist_checkpointing.save(
            {"model": state, "args": Namespace(num_layers=4), "iteration": 7, "checkpoint_version": 3.0},
            str(iteration),
        )
        (Path(target) / "latest_checkpointed_iteration.txt").write_text("7")


@pytest.mark.parametrize("style", ["plain", pytest.param("prefixed", marks=pytest.mark.more), "layers apart"])
def test_checkpoints_of_megatron_are_converted(style: str, world: World, tmp_path: Path) -> None:
    """Those that megatron-core's API wrote, layers stacked or apart: the same bits as the Hugging Face model."""
    run_ranks(save_with_megatron, 1, str(world.base), str(tmp_path / "theirs"), style)
    outcome = command("convert", "--megatron", tmp_path / "theirs", world.hugging_face, tmp_path / "ours")
    assert outcome.error == ""
    ours, base = (layout.read_manifest(path) for path in (tmp_path / "ours", world.base))
    assert ours.checksums == base.checksums
    assert ours.probe.loss_nats_per_token == pytest.approx(base.probe.loss_nats_per_token, abs=1e-6)
    assert command("verify", tmp_path / "ours", world.hugging_face).error == ""


def test_what_is_no_megatron_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    """An empty directory, a tracker that names no iteration, another model's config."""
    (tmp_path / "empty").mkdir()
    words = (world.hugging_face, tmp_path / "ours")
    assert "holds no torch_dist shards" in command("convert", "--megatron", tmp_path / "empty", *words).error
    (tmp_path / "empty" / "latest_checkpointed_iteration.txt").write_text("../../x")
    assert "which is no iteration" in command("convert", "--megatron", tmp_path / "empty", *words).error
    shutil.copytree(world.hugging_face, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    words = (tmp_path / "other", tmp_path / "ours")
    assert command("convert", "--megatron", world.base, *words).error != ""
    assert not (tmp_path / "ours").exists()


@pytest.mark.more
def test_exports_are_the_same_through_either_way(
    world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """Out to Megatron-LM's form, in again, and out to Hugging Face: the bits of the direct export."""
    run = whole_runs[Layout(2, tp=2)]
    assert command("export", run, tmp_path / "direct").error == ""
    assert command("export", "--megatron", run, tmp_path / "megatron").error == ""
    words = (tmp_path / "direct", tmp_path / "back")
    assert command("convert", "--megatron", tmp_path / "megatron", *words).error == ""
    assert command("export", tmp_path / "back", tmp_path / "again").error == ""
    assert same_weights(tmp_path / "direct", tmp_path / "again")
