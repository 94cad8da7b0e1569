"""The shape of the recipe's model, found without loading it.

Place in the flow: first thing a plan needs. Imports no torch. Invariant: what a run of the recipe would train: the
same files, read by the same family; of a model that is not on this machine the shape is declared, or named.
"""

from __future__ import annotations

from pathlib import Path

from cptron.checkpoint import layout
from cptron.config.schema import Config
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.declared import read_architecture, require_declared


def model_of(config: Config, given: Path | None) -> Architecture:
    """The architecture in `given` (a Hugging Face config.json, its directory, or a checkpoint), else in what the recipe
    starts from, else, where that is not on this machine, in `model.architecture`. Raises a `CptronError`."""
    declared, start = config.model.architecture, config.start.hugging_face or config.start.checkpoint
    if given is not None:
        return _read(given, "--model")
    if config.start.mode == "random" or (declared and not Path(start).exists()):
        return read_architecture(Path(declared), "model.architecture")
    found = _read(Path(start), f"start.{'hugging_face' if config.start.hugging_face else 'checkpoint'}")
    require_declared(declared, found, start)
    return found


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
        return read_architecture(path, key)
    if path.is_dir():
        return layout.read_manifest(layout.resolve(str(path))).arch
    raise ConfigError(
        f"{key}={path} is not on this machine, and the plan needs the model's shape; give --model with its Hugging "
        "Face config.json, or a checkpoint"
    )
