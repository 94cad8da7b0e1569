"""The resolved configurations that a run directory keeps.

Place in the flow: written by the trainer at start, read by whoever asks what a run was trained with.
Invariant: no configuration that ever was in force is overwritten.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from cptron.durable import fsync_path, replace_text

_CURRENT = "config.yaml"


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
        path.rename(next(run / name for name in names if not (run / name).exists()))
    new.replace(path)
    fsync_path(run)


def stored_configs(run: Path) -> list[Path]:
    """The configuration of `run`, then those that were in force before."""
    return [run / _CURRENT, *sorted(run.glob("config.until_step_*.yaml"), reverse=True)]
