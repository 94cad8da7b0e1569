"""What checkpoints a run has, and why each of them stays.

Place in the flow: `cptron checkpoint list`, and `cptron inspect` for a run; imports no torch. Invariant: what is
damaged, half written or half deleted is in the list, as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cptron.checkpoint.marks import read_marks
from cptron.checkpoint.prune import Seen, reasons, survey
from cptron.checkpoint.retention import Rules
from cptron.checkpoint.run_lock import other_writer
from cptron.config.load import load_config
from cptron.errors import CheckpointError, CptronError

Facts = dict[str, Any]

DAMAGED = "damaged"
FOREIGN = "of another version"


def rules_of(run: Path) -> Rules:
    """The rules of retention in force in a run. Raises `ConfigError` when its configuration cannot be read."""
    return Rules.of(load_config(run / "config.yaml").config.checkpoint)


def list_run(run: Path) -> list[Facts]:
    """One record for each checkpoint, oldest first, and for what a save or a deletion has under way."""
    checkpoints = run / "checkpoints"
    seen = survey(checkpoints)
    try:
        marks = read_marks(checkpoints)
        stays = {step: ", ".join(why) for step, why in reasons(seen, marks, rules_of(run)).items()}
        goes = "no rule: goes at the next save"
    except CptronError as error:
        marks, stays, goes = {}, {}, f"? {error}"
    bad = {step: ", ".join(f"marked {name}" for name in names) for step, names in marks.items()}
    return [
        _facts(item, stays.get(item.step, goes)) if item.manifest else _not_good(item, bad.get(item.step, ""))
        for item in seen
    ] + _under_way(run)


def _not_good(item: Seen, marked: str) -> Facts:
    if item.is_foreign:
        return _without_manifest(item.step, f"{FOREIGN}: {item.problem}", marked or "it is never deleted")
    return _without_manifest(
        item.step, f"{DAMAGED}: {item.problem}", marked or "no rule deletes what is damaged"
    )


def _facts(item: Seen, because: str) -> Facts:
    manifest = item.manifest
    assert manifest is not None, "asked of good ones"
    return {
        "step": item.step,
        "tokens": manifest.tokens_total,
        "bytes": sum(file.size for file in manifest.files.values()),
        "layout": manifest.layout,
        "kind": manifest.kind,
        "state": "complete",
        "metrics": {
            name: value for name, value in manifest.metrics.items() if name.endswith("loss_nats_per_token")
        },
        "kept": because,
    }


def _without_manifest(step: int, state: str, because: str) -> Facts:
    return {
        "step": step,
        "tokens": "?",
        "bytes": "?",
        "layout": "?",
        "kind": "?",
        "state": state,
        "metrics": {},
        "kept": because,
    }


def _under_way(run: Path) -> list[Facts]:
    """Hidden directories: of the save or the deletion in progress, or left by one that was killed."""
    alive = bool(other_writer(run))
    words = {
        ".writing_step_": ("being written", "writing was cut off; removed at the next start"),
        ".removing_step_": ("being deleted", "deletion was cut off; finished by the next"),
    }
    return [
        _without_manifest(int(path.name.removeprefix(prefix)), now if alive else left, "-")
        for prefix, (now, left) in words.items()
        for path in sorted((run / "checkpoints").glob(f"{prefix}*"))
        if path.name.removeprefix(prefix).isdigit()
    ]


def require_run(run: Path) -> Path:
    """The directory `run`, if it has checkpoints. Raises `CheckpointError`."""
    if not (run / "checkpoints").is_dir():
        raise CheckpointError(
            f"{run} has no checkpoints directory, is no run; give a run directory of cptron train"
        )
    return run
