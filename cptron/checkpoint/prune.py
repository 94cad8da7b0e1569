"""Deletes the checkpoints that no rule keeps.

Place in the flow: after every save, and `cptron checkpoint prune`. Imports no torch. Invariant: a deletion begins by
taking the name away, so that a checkpoint under its name is whole; one that was cut off is finished by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.in_use import unread
from cptron.checkpoint.marks import one_at_a_time, read_marks
from cptron.checkpoint.retention import Rules, Saved, kept
from cptron.durable import fsync_path
from cptron.errors import CheckpointError

_DOOMED = ".removing_"


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint under its name."""

    step: int
    path: Path
    manifest: layout.Manifest | None
    """None: damaged."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of the checkpoints that no rule keeps."""

    removed: list[Path]
    in_use: list[Path]
    """Not removed, because somebody reads them."""


def survey(checkpoints: Path, newest_good: int | None = None) -> list[Seen]:
    """Every checkpoint under its name, oldest first; good is what has all files in their sizes, and is not beyond the
    step `newest_good` of a run that goes on."""
    return [_look(step, path, newest_good) for step, path in layout.list_checkpoints(checkpoints)]


def _look(step: int, path: Path, newest_good: int | None) -> Seen:
    if newest_good is not None and step > newest_good:
        return Seen(step, path, None, f"checkpoint {path} is damaged: the run was started without it")
    try:
        return Seen(step, path, layout.read_manifest(path))
    except CheckpointError as error:
        return Seen(step, path, None, str(error))


def reasons(seen: Sequence[Seen], marks: Mapping[int, tuple[str, ...]], rules: Rules) -> dict[int, list[str]]:
    """Step -> why the checkpoint stays. Damaged ones do not count for any rule, and are not in it."""
    return kept(
        [
            Saved(item.step, item.manifest.tokens_total, item.manifest.metrics, marks.get(item.step, ()))
            for item in seen
            if item.manifest is not None
        ],
        rules,
    )


def to_remove(
    checkpoints: Path, rules: Rules, *, damaged: bool = False, newest_good: int | None = None
) -> list[Path]:
    """Checkpoints that no rule keeps, oldest first; with `damaged` also those that are damaged and older than the
    newest good one. Raises `CheckpointError` when marks cannot be read."""
    seen = survey(checkpoints, newest_good)
    stays = reasons(seen, read_marks(checkpoints), rules)
    newest = max((item.step for item in seen if item.manifest is not None), default=-1)
    return [
        item.path
        for item in seen
        if item.step not in stays and (item.manifest is not None or (damaged and item.step < newest))
    ]


def prune(
    checkpoints: Path, rules: Rules, *, damaged: bool = False, newest_good: int | None = None
) -> Pruned:
    """Delete what `to_remove` names, and what a deletion that was cut off has left. Raises OSError and
    `CheckpointError`.

    `newest_good`: the step that a run has just saved. What is newer was passed over when it started, for damage that
    sizes do not show, and must not count for what was trained since.
    """
    if not checkpoints.is_dir():
        return Pruned([], [])
    removed, in_use = list[Path](), list[Path]()
    with one_at_a_time(checkpoints):
        for path in to_remove(checkpoints, rules, damaged=damaged, newest_good=newest_good):
            with unread(path) as free:
                if free:
                    _take_name(path)
                (removed if free else in_use).append(path)
    if removed:
        fsync_path(checkpoints)
    for doomed in checkpoints.glob(f"{_DOOMED}*"):
        _remove(doomed)
    return Pruned(removed, in_use)


def _take_name(path: Path) -> None:
    doomed = path.with_name(f"{_DOOMED}{path.name}")
    if doomed.exists():  # of the same step, by a deletion that was cut off
        _remove(doomed)
    os.rename(path, doomed)


def _remove(directory: Path) -> None:
    """Delete a directory, at which another process may be too."""

    def unless_gone(_: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
        if not issubclass(error[0], FileNotFoundError):
            raise error[1]

    shutil.rmtree(directory, onerror=unless_gone)
