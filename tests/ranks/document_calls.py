"""Losses of every token, by the engine, under any cut of the sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.model.build import build_chunks
from cptron.model.segments import local_tokens
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout


def token_losses(
    checkpoint: str, tokens_BW: np.ndarray, labels_BW: np.ndarray, documents_BW: np.ndarray, layout: Layout
) -> np.ndarray:
    """Loss of every token of whole rows `[B, W]`, put together from all context ranks."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, layout, threads_per_rank=1) as session, torch.no_grad():
        (model,) = build_chunks(arch, layout)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, [model])
        width = tokens_BW.shape[1]
        here = local_tokens(width, layout.cp, session.topology.cp_rank(ranks.rank))
        arrays = (torch.from_numpy(array[:, here]) for array in (tokens_BW, labels_BW))
        tokens_BS, labels_BS = arrays
        found = model(tokens_BS, documents_BW, labels_BS).loss
        parts: list[tuple[np.ndarray, np.ndarray]] = [None] * ranks.world_size  # type: ignore[list-item]
        dist.all_gather_object(parts, (here, found.numpy()))
        whole_BW = np.full(tokens_BW.shape, np.nan, np.float32)
        for places, values in parts:
            whole_BW[:, places] = values
        return whole_BW
