"""Targets: the YAML of a run, as the user writes it and as a run directory keeps it."""

from __future__ import annotations

from pathlib import Path

from fuzz_target import Seed, Target
from fuzz_yaml import mutate_yaml, planted_yaml
from tiny_world import CONFIG

from cptron.config.check import check_config
from cptron.config.load import load_config, resolved_yaml
from cptron.config.stored import dotted, read_stored
from cptron.errors import ConfigError

COMMENTED = """\
# a run with anchors, as people write it
run: {dir: runs/a, seed: 7}
start: &start
  mode: random
model:
  architecture: config.json
data:
  seq_length: 64
  sources:
    - &one {name: one, path: data/one, token_share: 0.5}
    - name: two
      path: "data/two"
      token_share: 5.0e-1
train:
  steps: 100
  global_batch_size: 4
  precision: bf16
optim: {lr: 1.0e-4, lr_min: 1.0e-5, warmup_steps: 10, decay_steps: 100}
"""


def make_configs(root: Path) -> list[Seed]:
    """As people write it, and as the tests' own world has it."""
    seeds = []
    for name, text in (("written", COMMENTED), ("tests", CONFIG.format(root="world"))):
        (root / name).mkdir()
        (root / name / "config.yaml").write_text(text)
        seeds.append(Seed(root / name, "config.yaml"))
    return seeds


def make_resolved(root: Path) -> list[Seed]:
    """What a run keeps: every key written out."""
    seeds = make_configs(root)
    for seed in seeds:
        seed.path.write_text(resolved_yaml(load_config(seed.path).config))
    return seeds


def read_config(directory: Path) -> str:
    """Every key with its value; and whatever the rules say of them is said in a `ConfigError`."""
    config = load_config(directory / "config.yaml").config
    try:
        check_config(config, 1)
    except ConfigError as error:
        assert "\n" not in str(error), error
    return resolved_yaml(config)


def check_config_again(directory: Path, value: str) -> str | None:
    """What was read can be written, and means the same when it is read again."""
    again = directory / "again.yaml"
    again.write_text(value)
    found = resolved_yaml(load_config(again).config)
    again.unlink()
    return (
        None
        if found == value
        else "the configuration that was read is another when it is written and read again"
    )


def read_dotted(directory: Path) -> dict[str, str]:
    """Every key with its value, as a resume compares them."""
    return dotted(read_stored(directory))


TARGETS = [
    Target(
        format="config (YAML)",
        name="config",
        reader="cptron.config.load, cptron.config.nodes, cptron.config.check",
        make=make_configs,
        read=read_config,
        mutate=mutate_yaml,
        check=check_config_again,
        planted=planted_yaml,
        budget=3,
    ),
    Target(
        format="config (YAML)",
        name="config-of-a-run",
        reader="cptron.config.stored.read_stored",
        make=make_resolved,
        read=read_dotted,
        mutate=mutate_yaml,
        planted=planted_yaml,
    ),
]
