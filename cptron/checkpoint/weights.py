"""A model's weights from a checkpoint of any kind: whole weights, or an adapter and the base it was trained on.

Place in the flow: training, evaluation, verification and export load through here. Invariant: an adapter is only ever
put on the very base weights it was trained on; their fingerprint is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.checksum import differing
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.parts import Holds
from cptron.checkpoint.sharded import load_shards, weight_checksums
from cptron.config.schema import AdapterConfig
from cptron.errors import CheckpointError
from cptron.model.adapters import is_adapter, is_base
from cptron.model.build import DTYPES, build_model
from cptron.model.causal_lm import CausalLM
from cptron.model.options import ModelOptions
from cptron.runtime.dist import agree


def load_weights(
    checkpoint: Path, chunks: Sequence[Any], optimizer: Any | None = None, base: Path | None = None
) -> None:
    """Fill the chunks, and the optimizer where given; collective.

    From whole weights, adapters that the chunks have are left as they are. `base`: where an adapter's base is now, if
    not where it was. Raises `CheckpointError`.
    """
    manifest = agree(lambda: layout.read_manifest(checkpoint))
    if manifest.adapter is None:
        _load_part(checkpoint, chunks, optimizer, is_base)
        return
    _load_part(agree(lambda: base_of(manifest, base)), chunks, None, is_base)
    _load_part(checkpoint, chunks, optimizer, is_adapter)


def _load_part(checkpoint: Path, chunks: Sequence[Any], optimizer: Any | None, holds: Holds) -> None:
    """Fill what `holds` says, which is then as it was recorded; nobody deletes the checkpoint meanwhile."""
    with reading(checkpoint):
        load_shards(checkpoint / layout.SHARDS, chunks, optimizer, holds=holds)
        require_recorded(checkpoint, chunks, holds)


def require_recorded(checkpoint: Path, chunks: Sequence[Any], holds: Holds) -> None:
    """Raise `CheckpointError` on every rank unless the loaded weights are, to the bit, those that the checkpoint
    recorded; collective.

    Weights that are loaded into less precision than they are stored in cannot be compared so.
    """
    manifest = agree(lambda: layout.read_manifest(checkpoint))
    stored = DTYPES.get(manifest.precision)
    loaded = next(chunks[0].parameters()).dtype
    if not manifest.checksums or stored is None or stored.itemsize > loaded.itemsize:
        return
    found = weight_checksums(chunks, manifest.arch.vocab_size, stored, holds=holds)
    wrong = differing(found, manifest.checksums)
    if wrong:
        raise CheckpointError(
            f"{checkpoint} holds other weights than were recorded when it was written: {', '.join(wrong[:3])} "
            f"({len(wrong)} parameter(s) in all); it is damaged: use another checkpoint, or convert the model again"
        )


def base_of(manifest: layout.Manifest, base: Path | None = None) -> Path:
    """The checkpoint of whole weights that an adapter belongs to. Raises `CheckpointError` unless it is that one."""
    if base is None and not Path(manifest.base).is_dir():
        raise CheckpointError(
            f"{manifest.base} does not exist, and the adapter was trained on it; "
            "give --base, the place where that checkpoint is now"
        )
    path = layout.resolve(str(base or manifest.base))
    found = layout.read_manifest(path).weights_fingerprint
    if found != manifest.base_fingerprint:
        raise CheckpointError(
            f"{path} holds weights {found[:12]}, but the adapter was trained on {manifest.base_fingerprint[:12]}; "
            "give the base checkpoint that it was trained on"
        )
    return path


def open_model(checkpoint: Path, options: ModelOptions | None = None, base: Path | None = None) -> CausalLM:
    """The model of a checkpoint, with its adapter if it has one, in this one process."""
    manifest = layout.read_manifest(checkpoint)
    options = replace(options or ModelOptions(), adapter=adapter_of(manifest), random_weights=False)
    model = build_model(manifest.arch, options)
    load_weights(checkpoint, [model], base=base)
    return model


def adapter_of(manifest: layout.Manifest) -> AdapterConfig:
    """The adapter that a checkpoint holds."""
    if manifest.adapter is None:
        return AdapterConfig()
    return AdapterConfig(**{**manifest.adapter, "targets": tuple(manifest.adapter["targets"])})
