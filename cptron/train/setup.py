"""From a checked configuration to a run that is ready for its first step.

Place in the flow: between preflight and the loop. Invariant: when `prepare` returns, the weights are those
that were asked for; the gate has compared their loss on the probe with the recorded one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.checkpoint.weights import load_weights
from cptron.config.schema import Config
from cptron.convert.direct import load_direct
from cptron.convert.probe import probe_tokens
from cptron.data.batch import MicroBatch
from cptron.data.loader import TrainLoader
from cptron.data.windows import WindowSet
from cptron.errors import CheckpointError, ConfigError, TrainingError
from cptron.model.adapters import init_magnitudes
from cptron.model.fp8 import hardware_has_fp8, resolve_fp8
from cptron.model.linear_fp8 import without_fp8
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import finish_param_gather
from cptron.regularise.open import open_regulariser
from cptron.regularise.regulariser import Regulariser
from cptron.runtime.dist import agree
from cptron.runtime.pipeline import evaluate
from cptron.runtime.session import Session
from cptron.train.claim import record_start
from cptron.train.data import open_data
from cptron.train.engine import build_engine
from cptron.train.hooks import Record
from cptron.train.preflight import Plan, settled
from cptron.train.proof import proven_plan
from cptron.train.state import TrainState

GATE_TOLERANCE_NATS = {"fp32": 1e-3, "bf16": 3e-2}


@dataclass
class Run:
    """Everything the loop works with."""

    config: Config
    plan: Plan
    session: Session
    chunks: list[Any]
    """The parts of the model on this rank, each wrapped for data parallelism."""
    optimizer: Any
    state: TrainState
    loader: TrainLoader
    valid_sets: list[WindowSet]
    """Validation sets and probes."""
    source_names: list[str]
    base: layout.Manifest | None
    """What this process loaded says of itself: a checkpoint, or a Hugging Face model; None for random weights."""
    regulariser: Regulariser
    hugging_face: dict[str, bytes]
    """Small files that every save carries on for export, kept because `prune` may delete their source; main
    rank only."""
    evaluated: Record = field(default_factory=dict)
    """The last evaluation."""
    losses: dict[str, bytes] = field(default_factory=dict)
    """Losses by window that a save carries: of the base, and of the last evaluation; main rank only."""

    @property
    def directory(self) -> Path:
        """The run's output directory."""
        return Path(self.config.run.dir)

    @property
    def probe_token_ids(self) -> list[int]:
        """Tokens on which the weights are recognised."""
        if self.base is not None:
            return self.base.probe.token_ids
        return probe_tokens(None, self.plan.arch.vocab_size, self.plan.arch.max_position_embeddings)


def prepare(config: Config, plan: Plan, session: Session) -> Run:
    """Build model, optimizer and data, load what the plan names, and pass the gate; collective."""
    _check_same_plan(plan)
    arch = plan.arch
    options = ModelOptions.of(config)
    proven = proven_plan(agree(lambda: _with_fp8_note(plan, options)), config)
    plan = agree(lambda: settled(proven, config))
    engine = build_engine(config, arch, on_gpu=session.device.kind == "cuda")
    bare, chunks, optimizer = engine.bare, engine.chunks, engine.optimizer
    base, hugging_face = _load(plan, session, bare, optimizer)
    _refuse_another_start(config, plan)
    regulariser = open_regulariser(config, plan.held_to, bare, optimizer, session)
    state, loader, valid_sets = open_data(config, plan, session)
    run = Run(
        config=config,
        plan=plan,
        session=session,
        chunks=chunks,
        optimizer=optimizer,
        state=state,
        loader=loader,
        valid_sets=valid_sets,
        source_names=[source.name for source in config.data.sources],
        base=base,
        regulariser=regulariser,
        hugging_face=hugging_face,
    )
    _gate(run)
    agree(lambda: record_start(config, plan, state.step) if session.ranks.is_main else None)
    return run


def _load(
    plan: Plan, session: Session, bare: list[Any], optimizer: Any
) -> tuple[layout.Manifest | None, dict[str, bytes]]:
    """Fill model and optimizer from where the plan says; what that place says of itself, and its small files (main
    rank only)."""
    whole_state = plan.resume_from or plan.branch_from
    directory = whole_state or plan.base
    if directory is not None:
        base = agree(lambda: layout.read_manifest(directory))
        is_main = session.ranks.is_main
        hugging_face = agree(lambda: layout.read_hugging_face(directory) if is_main else {})
        load_weights(directory, bare, optimizer if whole_state else None, base=plan.base)
        if not whole_state:
            init_magnitudes(bare)
            optimizer.reload_model_params()
        return base, hugging_face
    if plan.hugging_face is None:
        return None, {}
    tp, tp_rank = session.topology.layout.tp, session.topology.tp_rank(session.ranks.rank)
    found = load_direct(plan.hugging_face, bare, tp, tp_rank, str(plan.identity["start"]))
    optimizer.reload_model_params()
    return found


def _refuse_another_start(config: Config, plan: Plan) -> None:
    """A run that is held near its starting weights, or learns from them, cannot have others from now on."""
    wanted = config.regularise
    if wanted.knows_base and not wanted.base and any(change.key == "start" for change in plan.accepted):
        raise ConfigError(
            f"run.dir={config.run.dir} was started from other weights than start.checkpoint={config.start.checkpoint}, "
            "and regularise holds it near those: put start.checkpoint back, or turn regularise off"
        )


def load_again(run: Run, plan: Plan) -> None:
    """Put a run that is under way back to the checkpoint `plan.resume_from`, by the same steps as a resume; collective.

    Raises a `CptronError` on every rank, and then the run cannot go on.
    """
    run.loader.close()
    finish_param_gather(run.chunks)
    run.plan, run.evaluated = plan, {}
    bare = [chunk.module for chunk in run.chunks]
    run.base, run.hugging_face = _load(run.plan, run.session, bare, run.optimizer)
    run.state, run.loader, run.valid_sets = open_data(run.config, run.plan, run.session)
    run.evaluated = {}  # of the steps that are left
    _gate(run)


def _with_fp8_note(plan: Plan, options: ModelOptions) -> Plan:
    """The plan, which says so where FP8 was asked for and this device computes something else."""
    asked, found = options.fp8.recipe, resolve_fp8(options.fp8).recipe
    if asked == "delayed" and plan.resume_from is not None:
        return replace(
            plan, notes=(*plan.notes, "fp8.recipe=delayed: its scales are not saved and start anew")
        )
    if asked == "none" or hardware_has_fp8():
        return plan
    what = (
        f"training goes on in {options.precision}" if found == "none" else "its numbers are emulated, slowly"
    )
    return replace(plan, notes=(*plan.notes, f"fp8.recipe={asked}: this device has no FP8 products; {what}"))


def _check_same_plan(plan: Plan) -> None:
    """Every rank made its plan from what its own machine sees; raise on all of them unless they agree."""
    plans: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(plans, (str(plan.resume_from or "the beginning"), plan.identity))
    start, identity = plans[0]
    for rank, (other_start, other_identity) in enumerate(plans):
        for key in {**identity, **other_identity}:
            ours, theirs = identity.get(key), other_identity.get(key)
            if ours != theirs:
                raise CheckpointError(
                    f"rank {rank} has {key}={theirs}, rank 0 has {key}={ours}; "
                    "give every rank the same configuration, base checkpoint and data"
                )
        if other_start != start:
            raise CheckpointError(
                f"rank {rank} would start from {other_start}, rank 0 from {start}; "
                "wait until every machine shows the same run.dir and start again"
            )


def probe_loss(run: Run) -> float:
    """Loss of the current weights on the probe, in nats per token; collective. Never in FP8, so that every run can be
    compared with every other."""
    ids = np.asarray(run.probe_token_ids, dtype=np.int64)
    count = len(ids) - 1
    filler = -count % run.session.topology.layout.sequence_unit
    batch = MicroBatch(
        tokens_BS=np.pad(ids[:-1], (0, filler))[None],
        labels_BS=np.pad(ids[1:], (0, filler))[None],
        loss_mask_BS=np.pad(np.ones(count, dtype=np.float32), (0, filler))[None],
        source_B=np.zeros(1, dtype=np.int64),
        documents_BS=np.zeros((1, count + filler), dtype=np.int32),
    )
    with without_fp8(run.chunks):
        return evaluate(run.chunks, [batch], run.session.device.torch_device).loss_nats_per_token


def _gate(run: Run) -> None:
    """Stop unless the loaded weights have the loss that their checkpoint recorded. Random weights have no
    record."""
    if run.base is None:
        return
    tolerance = run.config.start.gate_tolerance_nats or GATE_TOLERANCE_NATS[run.config.train.precision]
    expected, found = run.base.probe.loss_nats_per_token, probe_loss(run)
    if not abs(found - expected) <= tolerance:
        raise TrainingError(
            f"the loaded weights have loss {found:.4f} on the probe, their checkpoint recorded {expected:.4f} "
            f"(tolerance {tolerance:g}): the weights are not the ones asked for; "
            "use another checkpoint, or convert the base model again"
        )
