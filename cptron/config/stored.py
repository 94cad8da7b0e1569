"""The resolved configurations that a run directory keeps.

Place in the flow: written by the trainer at start, read by whoever asks what a run was trained with.
Invariant: no configuration that ever was in force is overwritten.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cptron.config.load import config_to_dict
from cptron.config.nodes import Loader
from cptron.config.schema import Config
from cptron.durable import fsync_path, replace_text
from cptron.errors import ConfigError

_CURRENT = "config.yaml"
ABSENT = "absent"


def store_config(run: Path, resolved: str, step: int) -> None:
    """Make `resolved` the configuration of `run` from `step` on; another one that was in force until then is
    kept as `config.until_step_STEP.yaml`, or `..._2.yaml` where a run was resumed there more than once.
    Raises OSError."""
    path = run / _CURRENT
    new = run / f"{_CURRENT}.new"
    replace_text(new, resolved)  # first: a full disk leaves the one in force
    if path.exists() and path.read_text() != resolved:
        stem = f"config.until_step_{step:08d}"
        names = itertools.chain([f"{stem}.yaml"], (f"{stem}_{number}.yaml" for number in itertools.count(2)))
        replace_text(next(run / name for name in names if not (run / name).exists()), path.read_text())
    new.replace(path)
    fsync_path(run)


def stored_configs(run: Path) -> list[Path]:
    """The configuration of `run`, then those that were in force before."""
    return [run / _CURRENT, *sorted(run.glob("config.until_step_*.yaml"), reverse=True)]


def read_stored(run: Path) -> dict[str, Any]:
    """Sections and values of the configuration in force in `run`. Raises ConfigError when it cannot be read."""
    path = run / _CURRENT
    try:
        values = _PlainLoader(path.read_text()).get_single_data()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read ({problem}); restore it or choose another run.dir"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} cannot be read (it holds no sections); restore it or choose another run.dir"
        )
    return values


def dotted(config: Config | Mapping[str, Any]) -> dict[str, str]:
    """Every value of a configuration as JSON text by its dotted key: `data.sources.law.token_share` -> `0.5`; what two
    of these have differently has changed, a key that only one has is `ABSENT` in the other."""
    return dict(_values(config if isinstance(config, Mapping) else config_to_dict(config), ""))


class _PlainLoader(Loader):
    """Refuses aliases: a run stores none, and a few lines of them can stand for more than a memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _values(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Dotted keys and values as text; an element of a list goes by its name, where it has one."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {str(item["name"]): item for item in value}
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _values(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(value, ensure_ascii=False, default=str)
