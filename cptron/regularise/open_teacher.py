"""Makes the teacher of a run: the starting weights in memory, or what they said when `cptron teach` asked them.

Place in the flow: `open` calls it. Invariant: what teaches is `regularise.base` or `start.checkpoint`, to the
bit, or was: its fingerprint is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.weights import load_weights
from cptron.config.schema import Config, Fp8Config
from cptron.data.open import open_sources
from cptron.errors import CheckpointError, ConfigError
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.regularise.taught_file import open_taught
from cptron.regularise.teacher import CachedTeacher, LiveTeacher, Teacher
from cptron.runtime.dist import agree
from cptron.runtime.session import Session


def open_teacher(config: Config, base: Path | None, session: Session, is_replay: Sequence[bool]) -> Teacher:
    """The teacher that `config` asks for; collective. Raises a `CptronError` on every rank where it cannot be had."""
    assert base is not None, "checked with the configuration"
    wanted, manifest = config.regularise.distill, agree(lambda: layout.read_manifest(base))
    if wanted.top_k > manifest.arch.vocab_size:
        raise ConfigError(
            f"regularise.distill.top_k={wanted.top_k} is more than the vocabulary {manifest.arch.vocab_size}; lower it"
        )
    device = session.device.torch_device
    if wanted.teacher == "live":
        options = ModelOptions.of(config)
        chunks = frozen_model(base, session, replace(options, fp8=Fp8Config()), wanted.top_k)
        return LiveTeacher(chunks, is_replay, wanted.weight, device)

    verify = session.ranks.is_main and config.checkpoint.verify != "sizes"

    def open_cached() -> CachedTeacher:
        sources = open_sources(config, manifest.arch.vocab_size)
        taught = {}
        for number, source in enumerate(sources):
            if is_replay[number]:
                found = open_taught(source.prefix, source.identity, wanted.top_k, verify=verify)
                if found.record.weights_fingerprint != manifest.weights_fingerprint:
                    raise CheckpointError(
                        f"{found.path} is of weights {found.record.weights_fingerprint[:12]}, {base} holds "
                        f"{manifest.weights_fingerprint[:12]}; make it with cptron teach {base}"
                    )
                taught[number] = found
        packed = config.data.packing == "best_fit"
        return CachedTeacher(sources, taught, wanted.weight, wanted.top_k, device, packed=packed)

    return agree(open_cached)


def frozen_model(checkpoint: Path, session: Session, options: ModelOptions, top_k: int) -> list[Any]:
    """The model of a checkpoint in this run's layout, which answers with its `top_k` most likely tokens; collective."""
    arch = agree(lambda: layout.read_manifest(checkpoint)).arch
    chunks = build_chunks(arch, session.topology.layout, replace(options, random_weights=False))
    load_weights(checkpoint, chunks)
    for chunk in chunks:
        chunk.eval()
        chunk.requires_grad_(False)
        chunk.top_k = top_k
    return chunks
