"""What the tests of regularisers run on each rank: a few steps of the engine, and what they left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_calls import micro_batches

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.load import load_config
from cptron.errors import CptronError
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import build_optimizer, finish_param_gather, wrap_chunks
from cptron.optim.stretch import Stretch, stretches_of
from cptron.regularise.open import open_regulariser
from cptron.regularise.projection import Projection
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.train.step import train_step


@dataclass(frozen=True)
class Found:
    """What one rank knows after the steps."""

    losses: list[float]
    norms: list[float]
    measures: list[dict[str, float]]
    moved: dict[str, float]
    """Largest change of each stretch by parameter, since the start."""
    moments: dict[str, float]
    """Largest moment by parameter."""
    rows_moved: dict[str, list[int]] = field(default_factory=dict)
    """Rows of vocabulary matrices that changed, counted in the whole matrix."""
    divergences: list[list[float]] = field(default_factory=list)
    """Of each step by source, nats per token."""
    error: str = ""


def steps(
    base: str,
    tokens_NGS1: np.ndarray,
    overrides: list[str],
    layout: Layout,
    *,
    config_file: str,
    overlap: bool = False,
) -> Found:
    """Train on `tokens_NGS1` from `base`: even rows are of source 0 (new), odd ones of source 1 (replay)."""
    ranks = launched_ranks()
    assert ranks is not None
    config = load_config(Path(config_file), [f"start.checkpoint={base}", *overrides]).config
    arch = checkpoint_layout.read_manifest(Path(base)).arch
    with open_session(ranks, layout, threads_per_rank=1) as session:
        bare = build_chunks(arch, layout, ModelOptions(precision=config.train.precision))
        chunks = wrap_chunks(bare, overlap=overlap)
        optimizer = build_optimizer(config.optim, chunks, config.train.precision)
        load_shards(Path(base) / checkpoint_layout.SHARDS, bare)
        optimizer.reload_model_params()
        try:
            regulariser = open_regulariser(config, Path(base), bare, optimizer, session)
        except CptronError as error:
            return Found([], [], [], {}, {}, error=f"{type(error).__name__}: {error}")
        device = session.device.torch_device
        stretches = stretches_of(optimizer)
        before = [stretch.main.detach().clone() for stretch in stretches]
        measures, losses, norms, tokens_total = [regulariser.measures(device)], [], [], 0
        divergences = []
        for tokens_GS1 in tokens_NGS1:
            result = train_step(
                chunks,
                optimizer,
                micro_batches(tokens_GS1, 1, session.dp_rank, session.topology.dp),
                lr=config.optim.lr,
                optim=config.optim,
                num_sources=2,
                device=device,
                regulariser=regulariser.at(tokens_total),
            )
            tokens_total += result.sums.tokens
            losses.append(result.sums.loss_nats_per_token)
            norms.append(result.grad_norm)
            sums = result.sums
            divergences.append((sums.divergence_nats_by_source / sums.tokens_by_source).tolist())
            measures.append(regulariser.measures(device))
        finish_param_gather(chunks)
        _assert_weights_follow(stretches)
        moved, moments, rows = _changes(stretches, before, bare[0])
        return Found(losses, norms, measures, moved, moments, rows, divergences)


def _assert_weights_follow(stretches: list[Any]) -> None:
    """The model's weights are the masters, rounded."""
    for stretch in stretches:
        weights = stretch.param.detach().view(-1)[stretch.start : stretch.stop]
        assert torch.equal(weights, stretch.main.detach().to(weights.dtype)), stretch.name


def _changes(
    stretches: list[Any], before: list[torch.Tensor], model: Any
) -> tuple[dict[str, float], dict[str, float], dict[str, list[int]]]:
    moved, moments, rows = {}, {}, {}
    for stretch, old in zip(stretches, before, strict=True):
        change = (stretch.main.detach() - old).abs()
        moved[stretch.name] = float(change.max())
        moments[stretch.name] = max([float(moment.abs().max()) for moment in stretch.moments], default=0.0)
        if stretch.name.endswith(("word_embeddings.weight", "output_layer.weight")):
            places = (torch.nonzero(change)[:, 0] + stretch.start) // stretch.param.shape[1]
            rows[stretch.name] = sorted(set((places + model.vocabulary.first_row).tolist()))
    return moved, moments, rows


def projected(sign: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """This rank's half of a gradient before, of the reference, and of the gradient after; beside it a stretch that both
    ranks have, which the second must not count."""
    ranks = launched_ranks()
    assert ranks is not None
    with open_session(ranks, Layout(tp=2), threads_per_rank=1):
        draw = torch.Generator().manual_seed(ranks.rank)
        own = torch.randn(2, 50, generator=draw)
        shared = torch.randn(2, 50, generator=torch.Generator().manual_seed(7))
        pairs = [own, shared]
        stretches = []
        for place, pair in enumerate(pairs):
            main = torch.zeros(50)
            pair[1] = 0.3 * pair[1] + sign * pair[0]
            main.grad = pair[0].clone()
            counts = place == 0 or ranks.rank == 0
            stretches.append(Stretch(f"mlp.{place}", main, main, 0, 50, counts, None, 0))
        projection = Projection(stretches, [False, True], torch.device("cpu"))
        projection._reference = [pair[1].clone() for pair in pairs]
        projection.project()
        shown = [0, 1] if ranks.rank == 0 else [0]
        before, reference = (torch.cat([pairs[n][m] for n in shown]).numpy() for m in (0, 1))
        return before, reference, torch.cat([stretches[n].main.grad for n in shown]).numpy()
