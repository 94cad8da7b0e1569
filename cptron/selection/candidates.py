"""The checkpoints of runs that can be compared with one another, and why the others can not.

Place in the flow: run directories -> here -> `rules`. Imports no torch. Invariant: every checkpoint of the runs, also
those that a rollback has left behind, is a candidate or is refused by name; all candidates were evaluated on the same
windows and are compared with one base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.listing import require_run
from cptron.config.load import load_config
from cptron.errors import CheckpointError
from cptron.forgetting.compare import (
    SUITE_KEYS,
    Resampling,
    change_of,
    changes,
    not_comparable,
    suite_changes,
)
from cptron.forgetting.evaluation import (
    BASE,
    FOLDER,
    NOW,
    EvaluatedSet,
    Evaluation,
    list_evaluations,
    read_evaluation,
)
from cptron.forgetting.left import LEFT
from cptron.forgetting.settings import resampling_of
from cptron.selection.rules import Point

SAME_BASE_NATS = 2e-3
"""Mean losses of one base model differ less than this, whatever the layout it was evaluated under."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that can be chosen."""

    point: Point
    run: Path
    path: Path
    step: int
    attempt: int
    """Rollbacks of the monitor before it."""
    is_left: bool
    """A rollback has left it behind."""
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """As it is shown and asked for."""
        return self.point.name


@dataclass(frozen=True, slots=True)
class Survey:
    """All that there is to choose from."""

    candidates: list[Candidate]
    refused: dict[str, str]
    """Name of each other checkpoint -> why it is no candidate."""
    unsaved: list[str]
    """Evaluations that no checkpoint has, by file."""
    base: Evaluation
    base_path: Path
    how: Resampling
    """How the first run makes intervals."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A checkpoint that was evaluated."""

    name: str
    run: Path
    path: Path
    now: Evaluation
    base: Evaluation
    is_left: bool


def survey(runs: Sequence[Path]) -> Survey:
    """What can be chosen from in `runs`. What it is compared with is the base, and the sets, of the first run's newest
    evaluated checkpoint. Raises a `CptronError` where nothing can be compared."""
    found: list[_Found] = []
    refused: dict[str, str] = {}
    unsaved: list[str] = []
    names: list[str] = []
    for run in runs:
        in_run: list[_Found] = []
        for path in _checkpoints(require_run(run)):
            name = str(path if len(runs) > 1 else path.relative_to(run))
            names.append(name)
            looked = _look(name, run, path)
            if isinstance(looked, str):
                refused[name] = looked
            else:
                in_run.append(looked)
        found += in_run
        unsaved += _unsaved(run, in_run, several=len(runs) > 1)
    reference = _reference(found, runs, refused)
    how = resampling_of(load_config(runs[0] / "config.yaml").config)
    candidates = []
    for item in found:
        if why := _other(item, reference):
            refused[item.name] = why
        else:
            candidates.append(_candidate(item, reference.base, how))
    refused = {name: refused[name] for name in names if name in refused}
    return Survey(candidates, refused, unsaved, reference.base, reference.path / FOLDER / BASE, how)


def point_of(name: str, now: Evaluation, base: Evaluation, how: Resampling) -> Point:
    """What the rules ask of a model that was evaluated as `now`; all of its old and new sets can be compared."""
    suites = suite_changes(now, base, how)
    sets = {
        f"{'valid' if now.sets[of].kind == 'text' else 'probe'}/{of}": change.estimate
        for of, change in changes(now, base).items()
        if not isinstance(change, str)
    }
    return Point(name, now.tokens_total, suites["old"], suites.get("new"), sets)


def suite_sets(evaluation: Evaluation) -> dict[str, EvaluatedSet]:
    """The old and new sets."""
    return {name: found for name, found in evaluation.sets.items() if found.suite in SUITE_KEYS}


def other_sets(now: Evaluation, reference: Evaluation) -> str:
    """In what the old and new sets of two evaluations differ; empty where they are the same windows."""
    ours, theirs = suite_sets(now), suite_sets(reference)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            return f"set {name} is {'not ' if name not in ours else ''}among its old and new sets"
        if ours[name].suite != theirs[name].suite:
            return f"set {name} has suite {ours[name].suite}, not {theirs[name].suite}"
        if ours[name].facts.windows != theirs[name].facts.windows:
            return f"set {name} has other tokens or windows"
    return ""


def _checkpoints(run: Path) -> Iterable[Path]:
    """Those of the run, then those that rollbacks have left."""
    yield from (path for _, path in layout.list_checkpoints(run / "checkpoints"))
    for attempt in _left(run):
        yield from sorted(attempt.glob("step_*"))


def _left(run: Path) -> list[Path]:
    """What rollbacks have left, a directory for each attempt."""
    return sorted(path for path in (run / LEFT).glob("*") if path.is_dir())


def _look(name: str, run: Path, path: Path) -> _Found | str:
    """What was evaluated at a checkpoint, or why it is no candidate."""
    is_left = path.parent != run / "checkpoints"
    try:
        manifest = layout.read_manifest(path)
        if not (path / FOLDER / NOW).is_file():
            return "it was not evaluated with suites at its step"
        if not (path / FOLDER / BASE).is_file():
            return "its run has no base: there were no suites at step 0"
        now, base = (read_evaluation(path / FOLDER / file) for file in (NOW, BASE))
    except CheckpointError as error:
        return str(error)
    places = [(of.step, of.tokens_total, of.attempt) for of in (manifest, now)]
    if places[0] != places[1]:
        return f"its {NOW} is of (step, tokens, attempt) {places[1]}, the checkpoint of {places[0]}"
    return _Found(name, run, path, now, base, is_left)


def _unsaved(run: Path, found: Sequence[_Found], *, several: bool) -> list[str]:
    """Evaluations after step 0 of which there is no checkpoint with them."""
    saved = {(item.path.parent, item.now.step) for item in found}
    folders = {run: run / "checkpoints"} | {left: left for left in _left(run)}
    return [
        str(path if several else path.relative_to(run))
        for folder, checkpoints in folders.items()
        for step, path in list_evaluations(folder).items()
        if step and (checkpoints, step) not in saved
    ]


def _reference(found: Sequence[_Found], runs: Sequence[Path], refused: dict[str, str]) -> _Found:
    ours = [item for item in found if item.run == runs[0]]
    if not ours:
        why = "; ".join(f"{name}: {why}" for name, why in list(refused.items())[:3]) or "there is none"
        raise CheckpointError(
            f"no checkpoint of {runs[0]} has an evaluation with a base ({why}); give validation sets a suite, and save "
            "at steps that are evaluated"
        )
    # by attempt first: after a rollback earlier steps are newer
    newest = max(ours, key=lambda item: (item.now.attempt, item.now.step))
    if not any(of.suite == "old" for of in newest.now.sets.values()):
        raise CheckpointError(
            f"{newest.path} was evaluated without old data, so that nothing tells what was forgotten; give a "
            "validation set suite: old"
        )
    for name, why in not_comparable(newest.now, newest.base).items():
        if newest.now.sets[name].suite in SUITE_KEYS:
            raise CheckpointError(
                f"the base of {newest.path} tells nothing of set {name}: {why}; take the set out of the "
                "suite, or choose among runs whose base has it"
            )
    return newest


def _other(item: _Found, reference: _Found) -> str:
    """Why a checkpoint cannot be compared with the reference; empty where it can."""
    if different := other_sets(item.now, reference.now):
        return f"evaluated with other data than {reference.name}: {different}"
    ours, theirs = item.base.sets, reference.base.sets
    for name in suite_sets(reference.now):
        change = change_of(name, ours[name], theirs[name]) if name in ours else "it was not evaluated"
        if isinstance(change, str):
            return f"its base is another than that of {reference.name}: set {name}: {change}"
        if not abs(change.estimate) <= SAME_BASE_NATS:
            return (
                f"its base is another than that of {reference.name}: loss on {name} differs by {change.estimate:+.4f} "
                "nats per token"
            )
    return ""


def _candidate(item: _Found, base: Evaluation, how: Resampling) -> Candidate:
    point = point_of(item.name, item.now, base, how)
    return Candidate(point, item.run, item.path, item.now.step, item.now.attempt, item.is_left, item.now)
