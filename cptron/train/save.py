"""Saves a run as a checkpoint.

Place in the flow: called by the loop. Invariant: whatever happens during a save, on whichever rank, the
checkpoints that were complete before stay complete and findable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.checkpoint.checksum import Checksums, fingerprint
from cptron.checkpoint.sharded import everything, save_shards, weight_checksums
from cptron.durable import begin_directory, working_directory
from cptron.errors import CheckpointError
from cptron.model.adapters import is_adapter
from cptron.model.vocab import padded_vocab_size
from cptron.optim.optimizer import finish_param_gather
from cptron.runtime.dist import agree
from cptron.train.setup import Run, probe_loss
from cptron.train.state import random_state
from cptron.versions import installed_versions


def save_checkpoint(run: Run) -> Path:
    """Write and publish the checkpoint of the current step; collective. Returns its directory."""
    checkpoints = run.directory / "checkpoints"
    final = layout.step_directory(checkpoints, run.state.step)
    working = working_directory(final)
    main = run.session.ranks.is_main
    finish_param_gather(run.chunks)
    loss = probe_loss(run)
    random_states: list[dict[str, str]] = [{} for _ in range(run.session.ranks.world_size)]
    dist.all_gather_object(random_states, random_state())

    def begin() -> None:
        with _disk_errors(working):
            (begin_directory(final) / layout.SHARDS).mkdir()

    def publish() -> None:
        state = {**run.state.to_dict(), "random_states": random_states}
        with _disk_errors(working):
            layout.write_json(working / layout.STATE, state)
            (working / layout.HUGGING_FACE).mkdir()
            for name, content in run.hugging_face.items():
                (working / layout.HUGGING_FACE / name).write_bytes(content)
            layout.publish(final, _manifest(run, loss, checksums))
            layout.prune(checkpoints, run.config.checkpoint.keep_last)

    agree(lambda: begin() if main else None)
    bare = [chunk.module for chunk in run.chunks]
    holds = everything if run.config.adapter.kind == "none" else is_adapter
    checksums = weight_checksums(bare, run.plan.arch.vocab_size, holds=holds)
    save_shards(working / layout.SHARDS, bare, run.optimizer, holds=holds)
    agree(lambda: publish() if main else None)
    return final


@contextmanager
def _disk_errors(working: Path) -> Iterator[None]:
    """Make a full disk, which only the main rank sees, an error that `agree` passes on to all."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write {working} ({error}); free space or choose another run.dir"
        ) from None


def _manifest(run: Run, loss_nats_per_token: float, checksums: Checksums) -> layout.Manifest:
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
    return layout.Manifest(
        **on_base,
        kind="adapter" if on_base else "training",
        step=run.state.step,
        tokens_total=run.state.tokens_total,
        architecture=run.plan.arch.to_dict(),
        hugging_face_model=base.hugging_face_model if base else "",
        tokenizer_fingerprint=base.tokenizer_fingerprint if base else "",
        weights_fingerprint=fingerprint(checksums, run.config.train.precision),
        checksums=checksums,
        padded_vocab_size=padded_vocab_size(run.plan.arch.vocab_size, run.session.topology.layout.tp),
        probe=layout.Probe(token_ids=run.probe_token_ids, loss_nats_per_token=loss_nats_per_token),
        layout=run.session.topology.describe(),
        precision=run.config.train.precision,
        parent=str(run.plan.resume_from or run.plan.base or run.plan.hugging_face or ""),
        versions=installed_versions(),
    )
