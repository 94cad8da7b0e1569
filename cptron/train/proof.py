"""Proves the checkpoint that a run is about to load, and finds an older one where it is damaged.

Place in the flow: `setup.prepare`, before anything is loaded. Invariant: what is loaded was proven as the configuration
asks, by all ranks together, each of which reads a part of the files; all of them load the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.checkpoint.verify import Proven, damage
from cptron.config.schema import Config
from cptron.errors import CheckpointError
from cptron.runtime.dist import agree, from_main
from cptron.train.preflight import Plan
from cptron.train.resume import RUN_FILE, stopped_by_damage

PROVEN = "proven.json"


def proven_plan(plan: Plan, config: Config) -> Plan:
    """The plan with a checkpoint that is proven; collective. Damaged ones are passed over with a note. Raises
    `CheckpointError` when none is left, when the configuration says so, and when the base is damaged."""
    if config.checkpoint.verify == "sizes":
        return plan
    directory = Path(config.run.dir)
    once = config.checkpoint.verify == "once"
    reads_base = config.adapter.kind != "none" or (config.regularise.needs_base and plan.held_to == plan.base)
    if plan.base is not None and (plan.resume_from is None or reads_base):
        found = _damage(plan.base, directory, once)
        if found:
            raise CheckpointError(f"{found[0]}; use another start.checkpoint, or convert the model again")
    if plan.held_to is not None and plan.held_to != plan.base and config.regularise.needs_base:
        found = _damage(plan.held_to, directory, once)
        if found:
            raise CheckpointError(f"{found[0]}; name another copy of it in regularise.base")
    if plan.branch_from is not None and plan.resume_from is None:
        found = _damage(plan.branch_from, directory, once)
        if found:
            raise CheckpointError(f"{found[0]}; branch from another checkpoint of that run")
    while plan.resume_from is not None and (found := _damage(plan.resume_from, directory, once)):
        if config.checkpoint.on_damage == "stop":
            raise stopped_by_damage(found[0])
        older = _next_older(directory / "checkpoints", plan.resume_from)
        if older is None:
            raise CheckpointError(
                f"no checkpoint of {directory} is usable: {found[0]}; restore one, or choose another run.dir"
            )
        plan = replace(plan, resume_from=older, notes=(*plan.notes, f"passed over: {found[0]}"))
    return plan


def _next_older(checkpoints: Path, than: Path) -> Path | None:
    """`older_checkpoint`, as the first rank sees it; collective."""
    return from_main(lambda: older_checkpoint(checkpoints, than))


def older_checkpoint(checkpoints: Path, than: Path) -> Path | None:
    """The newest checkpoint before `than` that has all of its files."""
    for step, directory in reversed(layout.list_checkpoints(checkpoints)):
        if step < layout.saved_step(than) and not _incomplete(directory):
            return directory
    return None


def _incomplete(directory: Path) -> bool:
    try:
        layout.read_manifest(directory)
    except CheckpointError:
        return True
    return False


def _damage(checkpoint: Path, run: Path, once: bool) -> list[str]:
    """What is wrong with a checkpoint, the same on every rank; each has read a part of its files."""
    proven = Proven(run / PROVEN)
    known = proven if once else (lambda path: False)
    lines: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lines, damage(checkpoint, (dist.get_rank(), dist.get_world_size()), known=known))
    found = [line for rank in lines for line in rank]
    if once and not found:
        agree(lambda: _record(proven, run, checkpoint) if dist.get_rank() == 0 else None)
    return found


def _record(proven: Proven, run: Path, checkpoint: Path) -> None:
    if not (run / RUN_FILE).is_file():  # a start that is refused leaves nothing behind
        return
    try:
        proven.add(checkpoint, list(layout.read_manifest(checkpoint).files))
    except OSError as error:
        raise CheckpointError(
            f"{run / PROVEN} cannot be written ({error}); free space or choose another run.dir"
        ) from None
