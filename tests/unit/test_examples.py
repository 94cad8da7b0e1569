"""Every YAML that is shipped can be run as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from plan_cases import HUGGING_FACE_8B

from cptron.config.check import check_config
from cptron.config.check_engine import check_shape
from cptron.config.load import load_config, resolved_yaml
from cptron.corpus.load import load_curation
from cptron.model.families.llama import read_config

ROOT = Path(__file__).parents[2]
CURATIONS = sorted((ROOT / "examples/curate").glob("*.y*ml"))
EXAMPLES = sorted(set((ROOT / "examples").rglob("*.y*ml")) - set(CURATIONS))
RANGE_8B = (8, 16, 32, 64, 128, 256, 512)
"""Ranks that the recipe which other pages start from is for; the others are tried on what they are planned for."""


def name_of(path: Path) -> str:
    """Path from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def planned_ranks(path: Path) -> list[int]:
    """Numbers of GPUs in the plans beside a recipe."""
    text = (path.parent / "plans" / f"{path.stem}.txt").read_text()
    return [int(count) for count in re.findall(r"^\$ cptron plan .*--gpus (\d+)", text, re.MULTILINE)]


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_example_loads_and_passes_every_rule(path: Path, tmp_path: Path) -> None:
    """With the ranks it starts itself, or with those it is planned for; and it survives a rewrite."""
    config = load_config(path).config
    local = config.parallel.local_ranks
    for world_size in (local,) if local else planned_ranks(path):
        check_config(config, world_size)
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(config))
    assert load_config(tmp_path / "resolved.yaml").config == config


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_example_does_not_depend_on_a_machine(path: Path) -> None:
    """Relative paths only, and no tracker that needs an account."""
    config = load_config(path).config
    paths = [config.run.dir, config.start.checkpoint]
    paths += [item.path for item in (*config.data.sources, *config.data.valid)]
    assert not [given for given in paths if Path(given).is_absolute() or ".." in Path(given).parts]
    assert config.log.wandb != "online"
    assert config.eval.at_start, "an example measures the baseline"


@pytest.mark.parametrize("path", CURATIONS, ids=name_of)
def test_curation_loads_and_does_not_depend_on_a_machine(path: Path) -> None:
    """Every step and setting is known; relative paths only."""
    corpus = load_curation(path).corpus
    paths = [corpus.output, *(given for source in corpus.inputs for given in source.paths)]
    assert not [given for given in paths if Path(given).is_absolute() or ".." in Path(given).parts]


def test_quickstart_reads_what_its_program_writes() -> None:
    """Token files and base model of quickstart.yaml are those that run.py makes before training."""
    program = (ROOT / "examples/quickstart/run.py").read_text()
    work = re.search(r'^WORK = Path\("([^"]+)"\)', program, re.MULTILINE)
    corpora = re.search(r"^CORPORA = \{(.+)\}", program, re.MULTILINE)
    assert work and corpora
    names = re.findall(r'"(\w+)":', corpora[1])
    config = load_config(ROOT / "examples/quickstart/quickstart.yaml").config
    assert config.start.checkpoint == f"{work[1]}/base"
    for split, items in (("train", config.data.sources), ("valid", config.data.valid)):
        expected = {name: f"{work[1]}/{name}_{split}_text_document" for name in names}
        assert {item.name: item.path for item in items} == expected
    for stem in re.findall(r': "(\w+)"', corpora[1]):
        for split in ("train", "valid"):
            assert (ROOT / f"examples/quickstart/data/{stem}.{split}.jsonl.gz").is_file()


def test_cluster_example_suits_its_model() -> None:
    """Llama 3.1 8B can be cut as the file says, on 1 to 64 nodes, and the run has the tokens that its comment says."""
    config = load_config(ROOT / "examples/recipes/llama3_8b_h100.yaml").config
    check_shape(read_config(dict(HUGGING_FACE_8B)), config)
    for world_size in RANGE_8B:
        check_config(config, world_size)
    tokens = config.train.steps * config.train.global_batch_size * config.data.seq_length
    assert round(tokens / 1e9) == 21
    assert config.train.precision == "bf16"
