"""The shape of the recipe's model, found without loading it.

Place in the flow: first thing a plan needs. Imports no torch. Invariant: what a run of the recipe would train: the
same files, read by the same family; a model that is not on this machine has to be named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.config.schema import Config
from cptron.errors import ConfigError
from cptron.json_text import parse_json
from cptron.model.architecture import Architecture
from cptron.model.families import family_of


def model_of(config: Config, given: Path | None) -> Architecture:
    """The architecture in `given` (a Hugging Face config.json, its directory, or a checkpoint), else in what the recipe
    starts from. Raises a `CptronError`."""
    if given is not None:
        return _read(given, "--model")
    if config.start.mode == "random":
        return _read(Path(config.model.architecture), "model.architecture")
    if config.start.hugging_face:
        return _read(Path(config.start.hugging_face), "start.hugging_face")
    return _read(Path(config.start.checkpoint), "start.checkpoint")


def base_of(config: Config) -> Path | None:
    """The checkpoint that the recipe starts from, where it is on this machine."""
    path = Path(config.start.checkpoint)
    if not config.start.checkpoint or config.start.hugging_face or not path.is_dir():
        return None
    return layout.resolve(str(path))


def _read(path: Path, key: str) -> Architecture:
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.is_file():
        return _read_config(path, key)
    if path.is_dir():
        return layout.read_manifest(layout.resolve(str(path))).arch
    raise ConfigError(
        f"{key}={path} is not on this machine, and the plan needs the model's shape; give --model with its Hugging "
        "Face config.json, or a checkpoint"
    )


def _read_config(path: Path, key: str) -> Architecture:
    try:
        values: Any = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}={path} is no JSON file ({error}); give a Hugging Face config.json"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{key}={path} holds a {type(values).__name__}, not an object; give a Hugging Face config.json"
        )
    return family_of(str(values.get("model_type"))).read_config(values)
