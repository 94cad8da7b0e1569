"""Marks: checkpoints that stay whatever the rules of retention say.

Place in the flow: set by `cptron checkpoint promote` and by whoever chooses a checkpoint while a run goes on; read when
checkpoints are deleted. Imports no torch. Invariant: a change of marks and a deletion never overlap; marks that cannot
be read stop every deletion.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.run_lock import LOCK, Held, exclusive
from cptron.errors import CheckpointError
from cptron.json_text import parse_json

MARKS = "marks.json"
PATIENCE_S = 30.0


@contextmanager
def one_at_a_time(checkpoints: Path) -> Iterator[None]:
    """Keep other processes from marking and deleting in `checkpoints` for as long; wait for them first. Raises
    `CheckpointError` when one of them does not end, and OSError."""
    try:
        with exclusive(checkpoints / LOCK, PATIENCE_S):
            yield
    except Held as error:
        raise CheckpointError(
            f"{checkpoints} is being changed by {error} for more than {PATIENCE_S:g} s; look at that process"
        ) from None


def read_marks(checkpoints: Path) -> dict[int, tuple[str, ...]]:
    """Step -> names of the marks that its checkpoint has. Raises `CheckpointError` when they cannot be read."""
    path = checkpoints / MARKS
    if not path.exists():
        return {}
    try:
        marks = {int(step): names for step, names in parse_json(path.read_text()).items()}
        for names in marks.values():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"{names!r:.40} is no list of names")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}), so that no checkpoint can be deleted; restore it, or remove it with all "
            "the marks"
        ) from None
    return {step: tuple(names) for step, names in marks.items()}


def mark(checkpoints: Path, step: int, name: str) -> None:
    """Keep the checkpoint of `step` for ever, because of `name`. Raises `CheckpointError` when it is not there, where
    the name is not one that a list can show, and where the mark cannot be written."""
    if not name.strip() or not name.isprintable():
        raise CheckpointError(f"mark {name!r} must be printable text on one line; give another name")
    _change(checkpoints, step, name, add=True)


def unmark(checkpoints: Path, step: int, name: str) -> None:
    """Take the mark `name` off the checkpoint of `step`. Raises `CheckpointError` when it has no such mark."""
    _change(checkpoints, step, name, add=False)


def mark_only(checkpoints: Path, steps: AbstractSet[int], name: str) -> list[int]:
    """Let the checkpoints of `steps` have the mark `name`, and no others; returns the steps whose mark is gone. New
    marks come first, so that what a process that is killed has left is one too many. Raises `CheckpointError`."""
    for step in sorted(steps):
        mark(checkpoints, step, name)
    gone = [step for step, names in read_marks(checkpoints).items() if name in names and step not in steps]
    for step in gone:
        unmark(checkpoints, step, name)
    return gone


def _change(checkpoints: Path, step: int, name: str, *, add: bool) -> None:
    try:
        with one_at_a_time(checkpoints):
            marks = read_marks(checkpoints)
            names = marks.get(step, ())
            if add:
                layout.read_manifest(layout.step_directory(checkpoints, step))
            elif name not in names:
                raise CheckpointError(
                    f"step {step} of {checkpoints} has no mark {name}; it has {', '.join(names) or 'none'}"
                )
            marks[step] = (*(other for other in names if other != name), *((name,) if add else ()))
            there = {step for step, _ in layout.list_checkpoints(checkpoints)}
            kept = {
                str(step): list(names) for step, names in sorted(marks.items()) if names and step in there
            }
            layout.write_json(checkpoints / MARKS, kept)
    except OSError as error:
        raise CheckpointError(
            f"{checkpoints / MARKS} cannot be written ({error}); make it writable"
        ) from None
