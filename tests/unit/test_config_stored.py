"""What a run directory remembers of its configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cptron.config.load import load_config, resolved_yaml
from cptron.config.schema import Config
from cptron.config.stored import ABSENT, dotted, read_stored, store_config, stored_configs
from cptron.errors import ConfigError

CONFIG = """\
run: {dir: here}
start: {checkpoint: base}
data:
  seq_length: 32
  sources: [{name: law, path: a, token_share: 0.5}, {name: web, path: b, token_share: 0.5}]
train: {steps: 20, global_batch_size: 8, micro_batch_size: 2}
optim: {lr: 2.0e-3, groups: [{match: "*norm*", lr_mult: 0.5}]}
"""


def test_no_configuration_is_lost(tmp_path: Path) -> None:
    """However often a run is resumed from one step with another configuration; the newest comes first."""
    for text, step in [("a", 0), ("a", 4), ("b", 6), ("c", 6), ("d", 6), ("e", 9), ("e", 9)]:
        store_config(tmp_path, text, step)
    assert [path.read_text() for path in stored_configs(tmp_path)] == ["e", "d", "c", "b", "a"]
    assert (tmp_path / "config.yaml").read_text() == "e"


def changes(run: Path, config: Config) -> list[str]:
    """What `config` has otherwise than the configuration in force in `run`."""
    before, now = dotted(read_stored(run)), dotted(config)
    return [
        f"{key} {before.get(key, ABSENT)} -> {now.get(key, ABSENT)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def test_every_change_is_named(tmp_path: Path) -> None:
    """Values, named elements of lists that differ, come or go, and what an older version did not know."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    config = load_config(path).config
    store_config(tmp_path, resolved_yaml(config), 0)
    assert changes(tmp_path, config) == []
    changed = load_config(
        path,
        ["attention.document_mask=false", "data.sources.law.token_share=0.7", "optim.groups.0.lr_mult=0.1"],
    ).config
    assert changes(tmp_path, changed) == [
        "attention.document_mask true -> false",
        "data.sources.law.token_share 0.5 -> 0.7",
        'optim.groups [{"match": "*norm*", "lr_mult": 0.5}] -> [{"match": "*norm*", "lr_mult": 0.1}]',
    ]
    fewer = replace(config, data=replace(config.data, sources=config.data.sources[:1]))
    assert 'data.sources.web.path "b" -> absent' in changes(tmp_path, fewer)
    older = resolved_yaml(config).replace("  document_mask: true\n", "")
    assert older != resolved_yaml(config)
    store_config(tmp_path, older, 0)
    assert changes(tmp_path, config) == ["attention.document_mask absent -> true"]


@pytest.mark.parametrize("damage", ["{", "\x00", "null", None])
def test_a_damaged_configuration_is_refused(tmp_path: Path, damage: str | None) -> None:
    """With the file, and what to do; None: it is gone."""
    if damage is not None:
        (tmp_path / "config.yaml").write_text(damage)
    with pytest.raises(
        ConfigError, match=r"config.yaml cannot be read \(.*restore it or choose another run.dir"
    ):
        read_stored(tmp_path)
