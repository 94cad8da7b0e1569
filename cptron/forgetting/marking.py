"""Which checkpoint of a run the monitor keeps while it goes on: the newest from before an alarm.

Place in the flow: after saves, where the action is `rollback`. Imports no torch. Invariant: what is kept is marked, so
that no rule of retention deletes it (`checkpoint.marks`).
"""

from __future__ import annotations

from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.marks import mark_only
from cptron.errors import CheckpointError
from cptron.forgetting.watch import Watch
from cptron.json_text import parse_json

QUIET = "before_alarm"


def keep_quiet(directory: Path) -> None:
    """Mark a new checkpoint, in place of the one before, where nothing was beyond epsilon at it. Raises
    `CheckpointError`."""
    if _is_quiet(directory):
        mark_only(directory.parent, {layout.saved_step(directory)}, QUIET)


def newest_quiet(checkpoints: Path, before: int) -> int | None:
    """Step of the newest good checkpoint, of those before the step `before`, at which nothing was beyond epsilon; None
    where there is none. One of that step itself was saved by a run that was asked to stop, before it was evaluated."""
    for step, directory in reversed(layout.list_checkpoints(checkpoints)):
        if step >= before:
            continue
        try:
            layout.read_manifest(directory)
            if _is_quiet(directory):
                return step
        except CheckpointError:
            continue
    return None


def _is_quiet(directory: Path) -> bool:
    path = directory / layout.STATE
    try:
        policy = Watch.from_dict(parse_json(path.read_text())["watch"]).policy
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); use another checkpoint") from None
    return not policy.alarmed and policy.above == 0
