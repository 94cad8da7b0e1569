"""Makes the regulariser of a run: reads where the weights started, and what they are worth.

Place in the flow: `train.setup`, after weights and optimizer are loaded. Invariant: the starting weights are those of
`start.checkpoint`, whose fingerprint the run keeps, to the bit; the Fisher information is of these very weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cptron.checkpoint import layout
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.parts import Parts
from cptron.config.schema import Config
from cptron.errors import CheckpointError
from cptron.model.build import DTYPES
from cptron.optim.stretch import Stretch, stretches_of
from cptron.regularise.regulariser import Anchor, Regulariser
from cptron.regularise.stored import read_stretches
from cptron.runtime.dist import agree


def open_regulariser(config: Config, base: Path | None, bare: Sequence[Any], optimizer: Any) -> Regulariser:
    """The regulariser that `config` asks for; `bare` are the chunks without their wrappers. Collective. Raises
    `CheckpointError` on every rank where what it needs is damaged or of another model."""
    wanted = config.regularise
    if not (wanted.l2sp or wanted.ewc):
        return Regulariser()
    assert base is not None, "checked with the configuration"
    stretches, parts = stretches_of(optimizer), Parts(bare, optimizer)
    starts = _starts(config, base, parts, stretches)
    return Regulariser(wanted, stretches, Anchor(starts))


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
    wrong = [name for name, checksum in found.items() if manifest.checksums.get(name) != checksum]
    if wrong:
        raise CheckpointError(
            f"{base} holds other weights than were recorded when it was written: {', '.join(sorted(wrong)[:3])} "
            f"({len(wrong)} parameter(s) in all), and the run is held near them; use another start.checkpoint"
        )
    return starts
