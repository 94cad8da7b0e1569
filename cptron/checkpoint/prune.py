"""Deletes the checkpoints that no rule keeps.

Place in the flow: after every save, and `cptron checkpoint prune`. Imports no torch. Invariant: a deletion begins by
taking the name away, so that a checkpoint under its name is whole; one that was cut off is finished by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
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
    """None: not good."""
    problem: str = ""
    is_foreign: bool = False
    """Of another version of cptron: whether it is good cannot be told."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of the checkpoints that no rule keeps."""

    removed: list[Path]
    in_use: list[Path]
    """Not removed, because somebody reads them."""


def survey(checkpoints: Path) -> list[Seen]:
    """Every checkpoint under its name, oldest first; good is what has all files in their sizes."""
    return [_look(step, path) for step, path in layout.list_checkpoints(checkpoints)]


def _look(step: int, path: Path) -> Seen:
    try:
        return Seen(step, path, layout.read_manifest(path))
    except CheckpointError as error:
        return Seen(step, path, None, str(error), isinstance(error, layout.OtherFormat))


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
    checkpoints: Path, rules: Rules, *, damaged: bool = False, distrusted: AbstractSet[int] = frozenset()
) -> list[Path]:
    """Checkpoints that no rule keeps, oldest first; with `damaged` also those that are damaged, not marked, and older
    than the newest good one. Raises `CheckpointError` when marks cannot be read.

    `distrusted`: steps whose checkpoints have all files in their sizes, and are damaged all the same.
    """
    seen, marks = survey(checkpoints), read_marks(checkpoints)
    good = [item for item in seen if item.manifest is not None and item.step not in distrusted]
    stays = reasons(good, marks, rules)
    newest_good = max((item.step for item in good), default=-1)
    paths = {item.path for item in good}

    def goes(item: Seen) -> bool:
        if item.path in paths:
            return item.step not in stays
        return damaged and item.step < newest_good and not item.is_foreign and not marks.get(item.step)

    return [item.path for item in seen if goes(item)]


def prune(
    checkpoints: Path, rules: Rules, *, damaged: bool = False, distrusted: AbstractSet[int] = frozenset()
) -> Pruned:
    """Delete what `to_remove` names, and what a deletion that was cut off has left. Raises `CheckpointError`."""
    if not checkpoints.is_dir():
        return Pruned([], [])
    pruned = Pruned([], [])
    try:
        if rules.delete or damaged:  # else nothing goes, and a thousand manifests need not be read
            with one_at_a_time(checkpoints):
                for path in to_remove(checkpoints, rules, damaged=damaged, distrusted=distrusted):
                    with unread(path) as free:
                        if free:
                            _take_name(path)
                        (pruned.removed if free else pruned.in_use).append(path)
        if pruned.removed:
            fsync_path(checkpoints)
        for doomed in checkpoints.glob(f"{_DOOMED}*"):
            _remove(doomed)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints of {checkpoints} that no rule keeps cannot be deleted ({error}); make it writable, or delete "
            "what is named by hand"
        ) from None
    return pruned


def _take_name(path: Path) -> None:
    doomed = path.with_name(f"{_DOOMED}{path.name}")
    if os.path.lexists(doomed):  # of the same step, by a deletion that was cut off
        _remove(doomed)
    os.rename(path, doomed)


def _remove(path: Path) -> None:
    """Delete a directory, at which another process may be too. Of a link only the link goes."""

    def unless_gone(_: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
        if not issubclass(error[0], FileNotFoundError):
            raise error[1]

    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, onerror=unless_gone)
