"""Which checkpoints of a run the monitor keeps: the newest from before an alarm, and the best.

Place in the flow: after saves, where the action is `rollback` or `stop_and_keep_best`, and where the latter ends a run.
Imports no torch. Invariant: what is kept is marked, so that no rule of retention deletes it (`checkpoint.marks`).
"""

from __future__ import annotations

from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.marks import mark, read_marks, unmark
from cptron.errors import CheckpointError
from cptron.forgetting.watch import Watch
from cptron.json_text import parse_json

QUIET, BEST = "before_alarm", "best"


def keep_quiet(directory: Path) -> None:
    """Mark a new checkpoint, in place of the one before, where nothing was beyond epsilon at it. Raises
    `CheckpointError`."""
    if _is_quiet(directory):
        _mark_only(directory.parent, layout.saved_step(directory), QUIET)


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


def mark_best(checkpoints: Path, epsilon_nats: float) -> int | None:
    """Mark the best checkpoint and return its step: of those whose old data is within epsilon, by the upper end of the
    interval, the one that has learned most; where none is, the one that has forgotten least; None where none was
    evaluated. Raises `CheckpointError`."""
    found = {}
    for step, directory in layout.list_checkpoints(checkpoints):
        try:
            metrics = layout.read_manifest(directory).metrics
        except CheckpointError:
            continue
        if "forgetting/old/change_nats" in metrics:
            found[step] = metrics
    if not found:
        return None
    within = {
        step for step, metrics in found.items() if metrics["forgetting/old/change_high"] <= epsilon_nats
    }
    # without new sets the latest has learned most
    learned = {step: found[step].get("learning/new/change_nats", -step) for step in within}
    best = (
        min(learned, key=lambda step: (learned[step], step))
        if within
        else min(found, key=lambda step: (found[step]["forgetting/old/change_nats"], step))
    )
    _mark_only(checkpoints, best, BEST)
    return best


def _is_quiet(directory: Path) -> bool:
    path = directory / layout.STATE
    try:
        policy = Watch.from_dict(parse_json(path.read_text())["watch"]).policy
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); use another checkpoint") from None
    return not policy.alarmed and policy.above == 0


def _mark_only(checkpoints: Path, step: int, name: str) -> None:
    mark(checkpoints, step, name)
    for other, names in read_marks(checkpoints).items():
        if name in names and other != step:
            unmark(checkpoints, other, name)
