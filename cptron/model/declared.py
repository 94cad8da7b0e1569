"""The shape of a model as a JSON file gives it: `model.architecture`, `--model`, or a model's own `config.json`.

Place in the flow: read by `train.origin` and by plans. Imports no torch. Invariant: a file that is damaged, or that
describes what the engine does not compute, is one line.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from cptron.errors import ConfigError
from cptron.json_text import parse_json
from cptron.model.architecture import Architecture
from cptron.model.families import architecture_of


def read_architecture(path: Path, key: str) -> Architecture:
    """The architecture in a file of the form of Hugging Face's `config.json`. Raises a `CptronError`."""
    if not path.is_file():
        raise ConfigError(f"{key}={path} does not exist; give a Hugging Face config.json")
    try:
        values: Any = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}={path} is no JSON file ({error}); give a Hugging Face config.json"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{key}={path} holds a {type(values).__name__}, not an object; give a Hugging Face config.json"
        )
    return architecture_of(values)


def require_declared(declared: str, found: Architecture, start: str) -> None:
    """Raise `ConfigError` unless the weights that `start` names have the shape that the file `declared` says, where a
    configuration names one."""
    if not declared:
        return
    wanted = read_architecture(Path(declared), "model.architecture")
    different = [
        f"{field.name}={getattr(found, field.name)} instead of {getattr(wanted, field.name)}"
        for field in fields(Architecture)
        if not _is_same(getattr(found, field.name), getattr(wanted, field.name))
    ]
    if different:
        raise ConfigError(
            f"{start} is another model than model.architecture={declared} says: {', '.join(different)}; start from the "
            "model that the configuration is for, or remove model.architecture"
        )


def _is_same(found: Any, wanted: Any) -> bool:
    """Numbers that went through fp32 on their way into a config are those that they were."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=FP32)
    return bool(found == wanted)


FP32 = 2.0**-23
"""Relative distance of numbers in fp32."""
