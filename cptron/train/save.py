"""Saves a run as a checkpoint, while training waits or while it goes on.

Place in the flow: called by the loop. Invariant: whatever happens during a save, on whichever rank, the checkpoints
that were complete before stay complete and findable; and of two saves the second begins after the first is published.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.checkpoint.background import BackgroundWriter
from cptron.checkpoint.block_writer import Written
from cptron.checkpoint.checksum import fingerprint
from cptron.checkpoint.parts import everything
from cptron.checkpoint.prune import prune
from cptron.checkpoint.retention import Rules
from cptron.checkpoint.sharded import Holdings, Report, complete_shards
from cptron.config.load import config_to_dict
from cptron.durable import begin_directory, working_directory
from cptron.errors import CheckpointError, TrainingError
from cptron.forgetting.evaluation import FOLDER, NOW
from cptron.model.adapters import is_adapter
from cptron.model.vocab import padded_vocab_size
from cptron.optim.optimizer import finish_param_gather
from cptron.runtime.dist import agree, to_main
from cptron.runtime.pace import SAVE
from cptron.train.setup import Run, probe_loss
from cptron.train.state import random_state
from cptron.versions import installed_versions

MEASURED = ("valid/", "probe/", "forgetting/", "learning/")
"""Values of an evaluation that its checkpoint keeps."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """A save as it was when it began."""

    final: Path
    manifest: layout.Manifest
    """Without what only the written files tell."""
    state: dict[str, Any]
    """Whole on the main rank, which writes it."""
    holdings: Holdings
    losses: dict[str, bytes]
    """Files of the forgetting monitor; main rank only."""


class Saver:
    """Saves one run, one checkpoint at a time. Methods are collective where they do not say otherwise."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._checkpoints = run.directory / "checkpoints"
        self._begun: _Begun | None = None
        self._writer: BackgroundWriter | None = None
        self._passed_over: set[int] = set()
        """Steps of checkpoints that were found damaged, whatever their sizes say."""
        self.stall_time_s = 0.0
        """For how long training waited for the last save."""
        if run.session.ranks.is_main:
            for left in (*self._checkpoints.glob(".writing_*"), *self._checkpoints.glob(".removing_*")):
                shutil.rmtree(left, ignore_errors=True)  # by a killed run
        if run.config.checkpoint.asynchronous:
            self._writer = BackgroundWriter()

    def save(self) -> list[Path]:
        """Save the current step; returns the directories of the checkpoints published meanwhile: of this one unless
        saves are asynchronous, and before it of one that was still being written."""
        started_s = time.perf_counter()
        published = self.finish()
        begun = self._begin()
        shards = working_directory(begun.final) / layout.SHARDS
        rank = self._run.session.ranks.rank
        if self._writer is None:

            def write() -> Written:
                with _disk_errors(shards):
                    return begun.holdings.write(shards, rank)

            published.append(self._publish(begun, agree(write)))
        else:
            writer = self._writer
            agree(lambda: writer.start(shards, rank, begun.holdings.blocks))
            # of parameters in FP8 the blocks are copies, which need not stay until all is written
            self._begun = replace(begun, holdings=replace(begun.holdings, blocks=[]))
        self.stall_time_s = time.perf_counter() - started_s
        return published

    def published(self) -> list[Path]:
        """The checkpoint that has been written since, if it is on all ranks. Raises `CheckpointError` on all of them
        when it could not be on one."""
        if self._begun is None:
            return []
        assert self._writer is not None
        waiting = torch.tensor([not self._writer.is_ready], device=self._run.session.device.torch_device)
        dist.all_reduce(waiting, op=dist.ReduceOp.MAX)
        return [] if waiting.item() else self.finish()

    def before_update(self) -> None:
        """Wait until what is being saved may change; not collective."""
        if self._writer is not None:
            self._writer.copied()

    def finish(self) -> list[Path]:
        """Wait for the save in progress, if there is one; its checkpoint."""
        if self._begun is None:
            return []
        begun, writer, self._begun = self._begun, self._writer, None
        assert writer is not None

        def result() -> Written:
            try:
                return writer.result()
            except CheckpointError as error:
                raise _cannot_write(working_directory(begun.final), error) from None

        with self._run.session.pace.during(SAVE):
            return [self._publish(begun, agree(result))]

    def close(self) -> None:
        """End the process behind this rank, and what it is writing; not collective."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self) -> _Begun:
        """Take down everything that training will change, but the tensors."""
        run = self._run
        final = layout.step_directory(self._checkpoints, run.state.step)
        finish_param_gather(run.chunks)
        loss = probe_loss(run)
        if not math.isfinite(loss):  # a resume would not take it, nor look beyond it
            raise TrainingError(
                f"the weights after step {run.state.step} have loss {loss} on the probe and are not saved; the "
                "checkpoint before stays the newest: lower optim.lr or look at the data"
            )
        random_states = to_main(random_state())

        def begin() -> None:
            with _disk_errors(working_directory(final)):
                self._checkpoints.parent.stat()  # a run directory that was removed is not made anew
                (begin_directory(final) / layout.SHARDS).mkdir()

        agree(lambda: begin() if run.session.ranks.is_main else None)
        holds = everything if run.config.adapter.kind == "none" else is_adapter
        bare = [chunk.module for chunk in run.chunks]
        holdings = Holdings.of(bare, run.optimizer, run.plan.arch.vocab_size, holds)
        state = {**run.state.to_dict(), "random_states": random_states}
        is_evaluated = run.evaluated.get("step") == run.state.step
        losses = {name: content for name, content in run.losses.items() if name != NOW or is_evaluated}
        return _Begun(final, _manifest(run, loss), state, holdings, losses)

    def _publish(self, begun: _Begun, written: Written) -> Path:
        """Complete what all ranks have written."""
        reports = to_main(begun.holdings.report(written))
        agree(lambda: self._complete(begun, reports) if self._run.session.ranks.is_main else None)
        return begun.final

    def _complete(self, begun: _Begun, reports: list[Report]) -> None:
        working = working_directory(begun.final)
        with _disk_errors(working):
            files, checksums = complete_shards(working / layout.SHARDS, reports)
            layout.write_json(working / layout.STATE, begun.state)
            (working / layout.HUGGING_FACE).mkdir()
            for name, content in self._run.hugging_face.items():
                (working / layout.HUGGING_FACE / name).write_bytes(content)
            if begun.losses:
                (working / FOLDER).mkdir()
            for name, content in begun.losses.items():
                (working / FOLDER / name).write_bytes(content)
            weights = fingerprint(checksums, begun.manifest.precision)
            manifest = replace(begun.manifest, checksums=checksums, weights_fingerprint=weights)
            layout.publish(
                begun.final, manifest, {f"{layout.SHARDS}/{name}": file for name, file in files.items()}
            )
            self._prune(begun.manifest.step)

    def _prune(self, published: int) -> None:
        """Delete what no rule keeps. A checkpoint of a later step than the one just published is one that a resume or
        a rollback has passed over: it counts for no rule until it is replaced."""
        later = {step for step, _ in layout.list_checkpoints(self._checkpoints) if step > published}
        self._passed_over = (self._passed_over | later) - {published}
        prune(self._checkpoints, Rules.of(self._run.config.checkpoint), distrusted=self._passed_over)


@contextmanager
def _disk_errors(working: Path) -> Iterator[None]:
    """Make a full disk an error that `agree` passes on to all."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(working, error) from None


def _cannot_write(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot write {path} ({error}); free space or choose another run.dir")


def _manifest(run: Run, loss_nats_per_token: float) -> layout.Manifest:
    base, adapter = run.base, run.config.adapter
    on_base: dict[str, Any] = {}
    if adapter.kind != "none":
        assert base is not None and run.plan.base is not None, "checked with the configuration"
        of_base = base.base_fingerprint or base.weights_fingerprint
        on_base = {
            "base": str(run.plan.base.resolve()),
            "base_fingerprint": of_base,
            "adapter": asdict(adapter),
        }
    metrics = run.evaluated if run.evaluated.get("step") == run.state.step else {}
    return layout.Manifest(
        **on_base,
        kind="adapter" if on_base else "training",
        step=run.state.step,
        tokens_total=run.state.tokens_total,
        architecture=run.plan.arch.to_dict(),
        hugging_face_model=base.hugging_face_model if base else "",
        tokenizer_fingerprint=base.tokenizer_fingerprint if base else "",
        weights_fingerprint="",
        padded_vocab_size=padded_vocab_size(run.plan.arch.vocab_size, run.session.topology.layout.tp),
        probe=layout.Probe(token_ids=run.probe_token_ids, loss_nats_per_token=loss_nats_per_token),
        layout=run.session.topology.describe(),
        precision=run.config.train.precision,
        parent=str(
            run.plan.resume_from or run.plan.branch_from or run.plan.base or run.plan.hugging_face or ""
        ),
        lineage=_lineage(run),
        config=config_to_dict(run.config),
        ledger=run.state.ledger.to_dict(),
        metrics={
            name: float(value)
            for name, value in metrics.items()
            if name.startswith(MEASURED) and isinstance(value, int | float)
        },
        attempt=run.state.reaction.attempt,
        versions=installed_versions(),
    )


def _lineage(run: Run) -> tuple[str, ...]:
    """What this run started from: a resume adds nothing to it."""
    before = run.base.lineage if run.base else ()
    start = run.plan.branch_from or run.plan.base
    return before if run.plan.resume_from or start is None else (str(start.resolve()), *before)
