"""Makes the regulariser of a run: reads where the weights started, and what they are worth.

Place in the flow: `train.setup`, after weights and optimizer are loaded. Invariant: the starting weights are of
`regularise.base` or `start.checkpoint`, whose fingerprint the run keeps, to the bit; the Fisher information is of these
very weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.checkpoint.checksum import Checksums
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.parts import Parts
from cptron.config.schema import Config
from cptron.errors import CheckpointError
from cptron.model.build import DTYPES
from cptron.optim.stretch import Stretch, stretches_of
from cptron.regularise.fisher_file import SHARDS, FisherRecord, damaged_files, read_record
from cptron.regularise.freeze import Freezer, check_rules
from cptron.regularise.open_teacher import open_teacher
from cptron.regularise.projection import Projection
from cptron.regularise.regulariser import Anchor, Regulariser
from cptron.regularise.stored import read_stretches
from cptron.runtime.dist import agree
from cptron.runtime.session import Session


def open_regulariser(
    config: Config, base: Path | None, bare: Sequence[Any], optimizer: Any, session: Session
) -> Regulariser:
    """The regulariser that `config` asks for; `bare` are the chunks without their wrappers. Collective. Raises
    `CheckpointError` on every rank where what it needs is damaged or of another model."""
    wanted, rules = config.regularise, config.optim.freeze
    is_replay = [source.role == "replay" for source in config.data.sources]
    teacher = open_teacher(config, base, session, is_replay) if wanted.distill.weight else None
    if not (wanted.pulls or wanted.agem or rules):
        return Regulariser(wanted, teacher=teacher)
    stretches = stretches_of(optimizer)
    anchor = freezer = projection = None
    if wanted.pulls:
        assert base is not None, "checked with the configuration"
        parts = Parts(bare, optimizer)
        starts = _starts(config, base, parts, stretches)
        anchor = Anchor(starts, _fishers(config, base, parts, stretches) if wanted.ewc else [])
    if rules:
        arch, first_row = bare[0].arch, bare[0].vocabulary.first_row
        check_rules(rules, bare, arch.vocab_size)
        freezer = Freezer(rules, stretches, first_row, arch.hidden_size)
    if wanted.agem:
        projection = Projection(stretches, is_replay, session.device.torch_device)
    return Regulariser(wanted, stretches, anchor, freezer, projection, teacher)


def _starts(config: Config, base: Path, parts: Parts, stretches: Sequence[Stretch]) -> list[torch.Tensor]:
    """The weights of the base as this run has loaded them: rounded to its precision."""
    manifest = agree(lambda: layout.read_manifest(base))
    trained = DTYPES[config.train.precision]
    kept = torch.bfloat16 if config.regularise.anchor_precision == "bf16" else trained
    with reading(base):
        starts, found = read_stretches(
            base / layout.SHARDS,
            parts,
            stretches,
            lambda value: value.to(trained).to(kept),
            vocab_size=manifest.arch.vocab_size,
            stored=DTYPES.get(manifest.precision) if manifest.checksums else None,
        )
    if found:
        _require_recorded(base, found, manifest.checksums)
    return starts


def _fishers(config: Config, base: Path, parts: Parts, stretches: Sequence[Stretch]) -> list[torch.Tensor]:
    """The Fisher information of the base, once it is proven to be that."""
    directory = Path(config.regularise.fisher)
    manifest, record = agree(lambda: (layout.read_manifest(base), read_record(directory)))
    if record.weights_fingerprint != manifest.weights_fingerprint:
        raise CheckpointError(
            f"regularise.fisher={directory} is of weights {record.weights_fingerprint[:12]}, {base} holds "
            f"{manifest.weights_fingerprint[:12]}; make it with cptron fisher {base}"
        )
    if config.checkpoint.verify != "sizes":
        _require_undamaged(directory, record)
    kept = DTYPES[config.regularise.fisher_precision]
    fishers, found = read_stretches(
        directory / SHARDS,
        parts,
        stretches,
        lambda value: value.to(kept),
        vocab_size=manifest.arch.vocab_size,
        stored=torch.float32,
    )
    _require_recorded(directory, found, record.checksums)
    return fishers


def _require_undamaged(directory: Path, record: FisherRecord) -> None:
    """Read every file, a part of them on each rank; raise on all of them where one is not what was written."""
    part = dist.get_rank(), dist.get_world_size()
    by_rank: list[list[str]] = [[] for _ in range(part[1])]
    dist.all_gather_object(by_rank, damaged_files(directory, record, part))
    wrong = sorted(name for names in by_rank for name in names)
    if wrong:
        raise CheckpointError(
            f"regularise.fisher={directory} is damaged: {', '.join(wrong[:3])} ({len(wrong)} file(s)) changed since "
            "cptron fisher wrote it; make it again"
        )


def _require_recorded(directory: Path, found: Checksums, recorded: Checksums) -> None:
    """Raise unless what was read, in this layout, is what was written."""
    wrong = sorted(name for name, checksum in found.items() if recorded.get(name) != checksum)
    if wrong:
        raise CheckpointError(
            f"{directory} holds other numbers than were recorded when it was written: {', '.join(wrong[:3])} "
            f"({len(wrong)} parameter(s) in all); use another, or make it again"
        )
