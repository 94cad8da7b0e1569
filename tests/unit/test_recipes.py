"""Every shipped recipe is planned, its plan is what the planner says today, and its layout fits and is accepted."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cptron import cli
from cptron.config.load import load_config
from cptron.model.declared import read_architecture
from cptron.plan.layouts import require_accepted
from examples.recipes.plans import HERE, MARKS, PLANNED, README, ROOT, Planned, index, plan, text_of

QUICK = ("llama3_1b_vietnamese", "qwen25_7b_domain", "smollm2_135m_laptop", "llama3_8b_lora")
"""Planned in a fraction of a second each; the others are made again by `make test-more`."""
RECIPES = [
    pytest.param(one, id=one.recipe, marks=() if one.recipe in QUICK else pytest.mark.more) for one in PLANNED
]


@functools.cache
def planned(command: str) -> dict[str, Any]:
    """The plan, made once in a session; the same as in the file, to the last digit that is shown there."""
    return plan(command)


@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_is_what_the_planner_says(recipe: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed file, and the recipe's line of the index, made again; the recipe as written fits on what it is
    planned for."""
    monkeypatch.chdir(ROOT)
    records = {command: planned(command) for command in recipe.commands}
    remedy = "run python -m examples.recipes.plans"
    assert (HERE / "plans" / f"{recipe.recipe}.txt").read_text() == text_of(recipe, records), remedy
    (line,) = index(records, [recipe]).splitlines()[2:]
    assert line in README.read_text().splitlines(), remedy
    assert all(record["layouts"] for record in records.values())


@pytest.mark.parametrize("recipe", PLANNED, ids=lambda one: one.recipe)
def test_recipe_is_accepted_on_what_it_is_planned_for(
    recipe: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checks of the trainer's start, with the shape that it declares; it fits by the plan beside it."""
    monkeypatch.chdir(ROOT)
    text = (HERE / "plans" / f"{recipe.recipe}.txt").read_text()
    blocks = text.split("\n\n\n")
    assert len(blocks) == len(recipe.commands)
    for command, block in zip(recipe.commands, blocks, strict=True):
        words = shlex.split(command)
        assert block.startswith(f"$ {command}\n")
        overrides = [word for word in words[3:] if re.fullmatch(r"\w+\.\w+=.*", word)]
        config = load_config(Path(words[2]), overrides).config
        arch = read_architecture(Path(config.model.architecture), "model.architecture")
        require_accepted(config, arch, int(words[words.index("--gpus") + 1]))
        assert re.search(r"^as written: \S+, fits, ", block, re.MULTILINE) or "a100-40gb" in command


PLANS_OF_THE_PAGE = [
    pytest.param(line, marks=() if "vietnamese" in line else pytest.mark.more)
    for line in re.findall(r"^cptron plan .*$", README.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("line", PLANS_OF_THE_PAGE)
def test_commands_of_the_page_run(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, as they are, without a model."""
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(line)[1:]) == 0
    said = capsys.readouterr().out
    assert "tokens_per_s_per_gpu" in said or "tokens/s/GPU" in said


def test_every_recipe_is_in_the_index_and_nothing_else_is() -> None:
    """Files, plans, lines of the table; every declared shape is used."""
    names = [one.recipe for one in PLANNED]
    assert sorted(names) == sorted(path.stem for path in HERE.glob("*.yaml"))
    assert sorted(names) == sorted(path.stem for path in (HERE / "plans").iterdir())
    table = README.read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    assert re.findall(r"^\| \[(\w+)\]", table, re.MULTILINE) == names
    shapes = {load_config(HERE / f"{name}.yaml").config.model.architecture for name in names}
    assert {Path(shape).name for shape in shapes} == {path.name for path in (HERE / "models").iterdir()}


def test_shapes_are_the_published_ones() -> None:
    """Parameters as their authors count them."""
    published = {
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
        "llama-3.2-1b": 1_235_814_400,
        "llama-2-7b": 6_738_415_616,
        "codellama-7b": 6_738_546_688,
        "qwen2.5-7b": 7_615_616_512,
        "smollm2-135m": 134_515_008,
    }
    for name, count in published.items():
        config = json.loads((HERE / "models" / f"{name}.json").read_text())
        h, q = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
        k = config["num_key_value_heads"] * config["head_dim"]
        bias = q + 2 * k if config["model_type"] == "qwen2" else 0
        layer = h * (2 * q + 2 * k) + 3 * h * config["intermediate_size"] + 2 * h + bias
        vocabularies = 1 if config["tie_word_embeddings"] else 2
        total = config["num_hidden_layers"] * layer + vocabularies * h * config["vocab_size"] + h
        assert total == count, name
