"""Finds tasks of lm-evaluation-harness: those it comes with, and the user's own.

Place in the flow: `harness` loads the tasks with this before any model. Invariant: unless asked for, nothing is
fetched; a task that would need it is an error which names the task.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptron.errors import ConfigError
from cptron.tokens.tokenizer import one_line

FEWSHOT_SEED = 1234
"""lm_eval's own."""
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
FLAGS = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    "evaluate.config": ("HF_EVALUATE_OFFLINE",),
}
"""Where these libraries keep what they read of the environment when they were imported."""


def stay_offline() -> None:
    """Forbid this process the network, as far as Hugging Face's libraries go."""
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    for module, flags in FLAGS.items():
        for flag in flags:
            if hasattr(sys.modules.get(module), flag):
                setattr(sys.modules[module], flag, True)


def load_tasks(
    names: Sequence[str], tasks_dir: Path | None, num_fewshot: int | None, *, online: bool
) -> dict[str, Any]:
    """Tasks and groups in the form that lm_eval evaluates. Raises `ConfigError` naming the task at fault.

    `num_fewshot` holds where a task's own definition does not say 0, as in lm_eval.
    """
    manager = _manager(names, tasks_dir)
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for part, values in _load(manager, name, tasks_dir, online).items():
            loaded[part].update(values)
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _manager(names: Sequence[str], tasks_dir: Path | None) -> Any:
    """An index of tasks that has all `names`; lm_eval's own ten thousand are read only where they are needed."""
    if not names:
        raise ConfigError(
            "--harness names 0 tasks, at least 1 is needed; give their names with commas between"
        )
    if tasks_dir is not None and not tasks_dir.is_dir():
        raise ConfigError(
            f"--tasks-dir {tasks_dir} is no directory, must hold task definitions; check the path"
        )
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=_absolute(tasks_dir), include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=_absolute(tasks_dir))
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        where = f"lm_eval or {tasks_dir}" if tasks_dir else "lm_eval"
        raise ConfigError(
            f"--harness names {', '.join(unknown)}, must be tasks of {where}; correct the name or give --tasks-dir"
        )
    return manager


def _load(manager: Any, name: str, tasks_dir: Path | None, online: bool) -> dict[str, dict[str, Any]]:
    """One task or group, its data included. Relative paths in the user's definitions are below `tasks_dir`."""
    with contextlib.chdir(tasks_dir or Path()):
        try:
            return manager.load([name])  # type: ignore[no-any-return]
        except ConnectionError as error:
            remedy = "check the network" if online else "give --online, or a local task by --tasks-dir"
            raise ConfigError(f"task {name} must fetch its data ({one_line(error)}); {remedy}") from None
        except Exception as error:  # a definition is code and data of the user's, and fails in its own ways
            raise ConfigError(
                f"task {name} cannot be loaded ({type(error).__name__}: {one_line(error)}); correct its definition"
            ) from error


def _absolute(tasks_dir: Path | None) -> str | None:
    return None if tasks_dir is None else str(tasks_dir.resolve())
