"""A declared shape is read, is compared with what a run starts from, and is never a mixture of experts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_cases import RECIPE
from test_model_families import LLAMA32, SMOLLM2

from cptron import cli
from cptron.config.load import load_config
from cptron.errors import ConfigError, ConversionError
from cptron.model.declared import read_architecture, require_declared
from cptron.model.families import architecture_of
from cptron.plan.shape import model_of


def written(path: Path, config: dict[str, Any]) -> str:
    """The config as a file."""
    path.write_text(json.dumps(config))
    return str(path)


def test_another_model_is_refused_with_every_difference(tmp_path: Path) -> None:
    """The very model passes, in whichever spelling; no declaration means no rule."""
    declared = written(tmp_path / "shape.json", SMOLLM2)
    arch = architecture_of(SMOLLM2)
    assert read_architecture(Path(declared), "key") == arch
    require_declared(declared, arch, "checkpoints/base")
    require_declared(
        declared, replace(arch, norm_eps=9.999999747378752e-06), "checkpoints/base"
    )  # fp32(1e-5)
    require_declared("", replace(arch, num_layers=1), "checkpoints/base")
    other = replace(arch, num_layers=29, rope_theta=8e6, norm_eps=1e-5)
    with pytest.raises(ConfigError) as caught:
        require_declared(declared, other, "checkpoints/base")
    said = str(caught.value)
    assert said.startswith(f"checkpoints/base is another model than model.architecture={declared} says: ")
    assert "num_layers=29 instead of 30, rope_theta=8000000.0 instead of 100000.0; " in said


def test_a_plan_reads_the_shape_of_what_is_elsewhere(tmp_path: Path) -> None:
    """The declaration where the weights are not here; where they are, they must be of that shape; `--model` wins."""
    declared = written(tmp_path / "shape.json", SMOLLM2)
    here = tmp_path / "here"
    here.mkdir()
    written(here / "config.json", LLAMA32)
    config = load_config(RECIPE, [f"model.architecture={declared}"]).config
    assert model_of(config, None) == architecture_of(SMOLLM2)
    assert model_of(config, here) == architecture_of(LLAMA32)
    config = replace(config, start=replace(config.start, checkpoint="", hugging_face=str(here)))
    with pytest.raises(ConfigError, match="is another model than"):
        model_of(config, None)
    written(here / "config.json", SMOLLM2)
    assert model_of(config, None) == architecture_of(SMOLLM2)


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("mixtral", "num_local_experts"),
        ("qwen3_moe", "num_experts"),
        ("deepseek_v3", "n_routed_experts"),
        ("llama", "num_local_experts"),  # of a family that is known, but not with experts
    ],
)
def test_mixtures_of_experts_are_refused_and_not_planned_as_dense(
    model_type: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the field, from every reader of configs, plans included."""
    config = LLAMA32 | {"model_type": model_type, key: 8}
    with pytest.raises(ConversionError, match=f"{key}=8: a mixture of experts .model_type '{model_type}'."):
        architecture_of(config)
    model = written(tmp_path / "config.json", config)
    assert cli.main(["plan", str(RECIPE), "--gpus", "8", "--gpu", "h100", "--model", model]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{key}=8" in line and "neither trains nor plans" in line


def test_one_expert_is_none() -> None:
    """Some dense configs carry the field."""
    assert architecture_of(LLAMA32 | {"num_experts": 0}) == architecture_of(LLAMA32)
