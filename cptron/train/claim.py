"""Holds the run directory while the run lives.

Place in the flow: `cptron train` enters it when the ranks have joined, before anything is loaded or written; `setup`
records the start when the gate is passed.
Invariant: all ranks go on, or all stop with the same line; what the plan says of the directory still holds once it is
ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.run_lock import sole_writer
from cptron.config.schema import Config
from cptron.durable import replace_text
from cptron.errors import CheckpointError, ConfigError
from cptron.forgetting.journal import JOURNAL, read_verdicts
from cptron.forgetting.left import set_aside
from cptron.partials import remove_partials
from cptron.runtime.dist import agree
from cptron.runtime.session import Session
from cptron.train.inherit import inherit
from cptron.train.preflight import Plan
from cptron.train.resume import RUN_FILE, find_run

CHANGES = "changes.jsonl"


@contextmanager
def claimed(config: Config, plan: Plan, session: Session) -> Iterator[Plan]:
    """The plan, with `run.dir` locked by the main rank until the context ends, and the base held against deletion;
    collective. Raises a `CptronError` on every rank where another process writes the run, or has just written it."""
    run = Path(config.run.dir)
    with ExitStack() as stack:
        is_main = session.ranks.is_main
        notes = agree(lambda: stack.enter_context(sole_writer(run)) if is_main else [])
        agree(lambda: _check_unchanged(run, plan, is_main=is_main))
        if plan.base is not None and is_main:  # that of an adapter is needed again at a resume
            stack.enter_context(reading(plan.base))
        if plan.held_to is not None and is_main:
            stack.enter_context(reading(plan.held_to))
        if plan.branch_from is not None and plan.resume_from is None and is_main:
            stack.enter_context(reading(plan.branch_from))  # a start again needs it until the first save
        yield replace(plan, notes=(*plan.notes, *notes))


def _check_unchanged(run: Path, plan: Plan, *, is_main: bool) -> None:
    """A writer that ended between the plan and the lock may have left a newer checkpoint. What an older one left behind
    is moved out of the way, which the plan has passed over."""
    found = find_run(run)
    now = found.checkpoint if found else None
    if now != plan.resume_from:
        raise CheckpointError(
            f"run.dir={run} has changed while this start was planned: it would go on from "
            f"{now or 'the beginning'}, not from {plan.resume_from or 'the beginning'}; start again"
        )
    if is_main:
        set_aside(run, read_verdicts(run / JOURNAL))


def record_start(config: Config, plan: Plan, step: int) -> None:
    """Make the directory this run's own: only when all is loaded, so that a refused start leaves nothing behind.

    What was accepted is entered in `changes.jsonl`, one line a start. Raises `ConfigError` when it cannot be written.
    """
    run = Path(config.run.dir)
    record = {"identity": plan.identity, "name": config.run.name or run.name}
    try:
        remove_partials([run], only_stale=True)  # of starts that were killed
        if plan.accepted or not (run / RUN_FILE).exists():
            layout.write_json(run / RUN_FILE, record)
        if plan.branch_from is not None and plan.resume_from is None:
            inherit(run, plan.branch_from)
        if plan.accepted:
            _journal(run / CHANGES, plan, step)
    except OSError as error:
        raise ConfigError(
            f"run.dir={run} cannot be written ({error}); free space or choose another run.dir"
        ) from None


def _journal(path: Path, plan: Plan, step: int) -> None:
    """Add what was accepted to the record, durably and in one step."""
    changes = [
        {"key": change.key, "before": change.before, "now": change.now, "effect": change.rule.effect}
        for change in plan.accepted
    ]
    start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "accepted": changes}
    written = path.read_text() if path.exists() else ""
    replace_text(path, f"{written}{json.dumps(start, ensure_ascii=False)}\n")
