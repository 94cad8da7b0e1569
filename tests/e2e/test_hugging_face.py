"""What goes in from Hugging Face and comes out again is what `transformers` says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rank_calls
import torch
from commands import evals
from tiny_world import ONE, SEQ_LENGTH, Layout, World, save_model

from cptron.evaluate.main import main as evaluate
from cptron.testing import run_ranks

MAX_TOKENS = {"domain": 0, "general": 500}


def command(*arguments: str | Path) -> rank_calls.Outcome:
    """A `cptron` command on a warm rank."""
    return run_ranks(rank_calls.command, 1, [str(argument) for argument in arguments])[0]


@pytest.fixture(scope="module")
def exported(whole_runs: dict[Layout, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """Exports of trained runs, one of them trained in four pieces."""
    root = tmp_path_factory.mktemp("exported")
    for layout in (ONE, Layout(4, tp=2, pp=2)):
        assert command("export", whole_runs[layout], root / str(layout)).error == ""
    return {layout: root / str(layout) for layout in (ONE, Layout(4, tp=2, pp=2))}


def assert_trainer_agrees(
    record: dict[str, float], model: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer's validation record equals `transformers` on the raw documents, tokens counted too."""
    for name, max_tokens in MAX_TOKENS.items():
        capsys.readouterr()
        corpus = world.corpus(f"{name}_valid")
        arguments = ["--hugging-face", str(model), "--data", str(corpus), "--seq-length", str(SEQ_LENGTH)]
        assert evaluate([*arguments, "--max-tokens", str(max_tokens)]) == 0
        theirs = json.loads(capsys.readouterr().out)
        assert record[f"valid/{name}/tokens"] == theirs["tokens"]
        assert record[f"valid/{name}/loss_nats_per_token"] == pytest.approx(
            theirs["loss_nats_per_token"], abs=1e-3
        )


def test_baseline_equals_transformers(
    world: World, whole_runs: dict[Layout, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation at step 0 is that of the model as it came."""
    assert_trainer_agrees(evals(whole_runs[ONE])[0], world.hugging_face, world, capsys)


@pytest.mark.parametrize("layout", [ONE, Layout(4, tp=2, pp=2)], ids=str)
def test_exported_model_equals_the_trainers_word(
    layout: Layout,
    world: World,
    whole_runs: dict[Layout, Path],
    exported: dict[Layout, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Validation after the last step is that of the exported model in `transformers`."""
    assert_trainer_agrees(evals(whole_runs[layout])[-1], exported[layout], world, capsys)


def test_eval_of_a_run_equals_its_last_record(world: World, whole_runs: dict[Layout, Path]) -> None:
    """`cptron eval --checkpoint RUN` measures the newest checkpoint as the trainer did."""
    last = evals(whole_runs[ONE])[-1]
    data = ("--data", world.tokens("domain_valid"), "--seq-length", str(SEQ_LENGTH))
    found = json.loads(command("eval", "--checkpoint", whole_runs[ONE], *data).stdout)
    assert found["tokens"] == last["valid/domain/tokens"]
    assert found["loss_nats_per_token"] == pytest.approx(last["valid/domain/loss_nats_per_token"], rel=1e-5)


def test_untrained_export_is_bit_identical(world: World, tmp_path: Path) -> None:
    """Every tensor, the tokenizer and the config come back; `transformers` loads them."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "exported"
    assert command("export", world.base, target).error == ""
    before, after = (load_file(directory / "model.safetensors") for directory in (world.hugging_face, target))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    assert (target / "tokenizer.json").read_bytes() == (world.hugging_face / "tokenizer.json").read_bytes()
    configs = [AutoConfig.from_pretrained(d).to_dict() for d in (world.hugging_face, target)]
    assert {**configs[0], "_name_or_path": ""} == {**configs[1], "_name_or_path": ""}
    _, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report
    assert AutoTokenizer.from_pretrained(target).eos_token == "<eos>"


def test_verify_accepts_the_right_pair_and_refuses_another(
    world: World, whole_runs: dict[Layout, Path], exported: dict[Layout, Path], tmp_path: Path
) -> None:
    """A trained run and its export pass; the model before training, or another one, does not."""
    passed = command("verify", whole_runs[ONE], exported[ONE])
    assert passed.error == ""
    assert json.loads(passed.stdout)["max_abs_logit_difference"] <= 1e-3
    save_model(tmp_path / "other", seed=1)
    for wrong in (world.hugging_face, tmp_path / "other"):
        assert "not the same model" in command("verify", whole_runs[ONE], wrong).error


def test_export_does_not_overwrite(world: World, exported: dict[Layout, Path]) -> None:
    """An existing directory stays as it is."""
    assert "already exists" in command("export", world.base, exported[ONE]).error
