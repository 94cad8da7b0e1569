"""Logits and a few training steps of the engine under any layout, for models as Hugging Face stores them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composition_calls import Batch, Piece, pieces

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import OptimConfig
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.weight_map import Part, layers_of, read_part
from cptron.model.architecture import Architecture
from cptron.model.build import build_chunks
from cptron.model.families import family_of
from cptron.model.options import ModelOptions
from cptron.model.segments import local_tokens
from cptron.optim.optimizer import build_optimizer, wrap_chunks
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import Session, open_session
from cptron.runtime.topology import Layout
from cptron.train.step import train_step

# as in `composition_calls`; at a lower rate, since each step's rounding errors grow with the next
OPTIM = OptimConfig(lr=3e-3, eps=1e-3, weight_decay=0.1, clip_grad_norm=1.0)


@dataclass(frozen=True)
class FamilyRun:
    """What one rank knows after a few steps."""

    places: np.ndarray
    """Tokens of the row that this rank holds."""
    logits: np.ndarray | None
    """Of these, before the first step, on ranks of the last stage."""
    history: list[tuple[float, float]]
    """Loss and gradient norm of each step."""
    weights: list[Piece]


Job = tuple[str, ModelOptions]
"""Hugging Face directory, and how it is trained."""


def logits_and_steps(
    jobs: list[Job], tokens_W: np.ndarray, batches: list[Batch], layout: Layout
) -> list[FamilyRun]:
    """Of each job: logits of one row, then a step on each batch in micro-batches of two rows."""
    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, layout, threads_per_rank=1) as session:
        return [_run(directory, options, tokens_W, batches, layout, session) for directory, options in jobs]


def _run(
    directory: str,
    options: ModelOptions,
    tokens_W: np.ndarray,
    batches: list[Batch],
    layout: Layout,
    session: Session,
) -> FamilyRun:
    reader = ModelReader(Path(directory))
    arch = family_of(str(reader.config["model_type"])).read_config(reader.config)
    bare = build_chunks(arch, layout, options)
    chunks = wrap_chunks(bare, overlap=False)
    optimizer = build_optimizer(OPTIM, chunks, options.precision)
    fill(bare, arch, reader, layout)
    optimizer.reload_model_params()
    places = local_tokens(len(tokens_W), layout.cp, session.topology.cp_rank(session.ranks.rank))
    with torch.no_grad():
        logits = _logits(bare[0], torch.from_numpy(tokens_W[None, places]), len(tokens_W), arch.vocab_size)
    history = []
    for batch in batches:
        result = train_step(
            chunks,
            optimizer,
            batch.micro_batches(2, session.dp_rank, session.topology.dp),
            lr=OPTIM.lr,
            optim=OPTIM,
            num_sources=2,
            device=session.device.torch_device,
        )
        history.append((result.sums.loss_nats_per_token, result.grad_norm))
    return FamilyRun(places, logits, history, pieces(bare, "data"))


@dataclass(frozen=True)
class Stored:
    """What one rank read of a checkpoint."""

    weights: list[Piece]


def stored_weights(checkpoint: str, layout: Layout) -> Stored:
    """This rank's part of a checkpoint of whole weights."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, layout, threads_per_rank=1):
        chunks = build_chunks(arch, layout)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, chunks)
        return Stored(pieces(chunks, "data"))


@torch.no_grad()
def fill(chunks: list[Any], arch: Architecture, reader: ModelReader, layout: Layout) -> None:
    """Each parameter of this rank from its part of the Hugging Face tensors."""
    part = Part(parallel_state.get_tensor_model_parallel_rank(), layout.tp)
    wanted = {}
    for chunk in chunks:
        numbers = [layer.layer_number - 1 for layer in chunk.decoder.layers]
        for name, parameter in chunk.named_parameters():
            words = name.split(".")
            if words[:2] == ["decoder", "layers"]:
                words[2] = str(numbers[int(words[2])])
            wanted[".".join(words)] = parameter

    def read(name: str, dim: int, start: int, end: int) -> torch.Tensor:
        return reader.read(name).narrow(dim, start, end - start)

    for rule in family_of(arch.family).rules_for(arch):
        for layer in layers_of(rule, arch):
            parameter = wanted.pop(rule.megatron.format(layer=layer), None)
            if parameter is not None:
                parameter.copy_(read_part(rule, arch, layer, read, chunks[0].vocab_size, part))
    # the last of several stages has a copy of a tied embedding
    copy = wanted.pop("output_layer.weight", None)
    if copy is not None:
        (rule,) = (r for r in family_of(arch.family).rules if r.layout == "vocab")
        copy.copy_(read_part(rule, arch, 0, read, chunks[0].vocab_size, part))
    assert not wanted, f"without a rule: {sorted(wanted)}"


def _logits(model: Any, tokens_BS: torch.Tensor, seq_length: int, vocab_size: int) -> np.ndarray | None:
    """megatron-core's schedule, forward; the vocabulary is gathered on the last stage."""
    found: list[torch.Tensor] = []

    def forward(batches: Any, stage: Any) -> Any:
        next(batches)
        output = stage(tokens_BS)

        def keep(logits: torch.Tensor) -> Any:
            found.append(gather_from_tensor_model_parallel_region(logits))
            return logits.sum(), torch.tensor(1), {}

        return output, keep

    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter([0]),
        model=[model],
        num_microbatches=1,
        seq_length=seq_length,
        micro_batch_size=1,
        forward_only=True,
    )
    return found[0][0, :, :vocab_size].numpy() if found else None
