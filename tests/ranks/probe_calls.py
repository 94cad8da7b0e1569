"""What the tests of losses by window run on each rank: the engine on a validation set and on probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema_forgetting import ForgettingConfig
from cptron.data.valid import ValidSet
from cptron.data.windows import WindowSet
from cptron.evaluate.perplexity import evaluate_set
from cptron.forgetting.probes import probe_sets
from cptron.model.build import build_chunks
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout

SEED = 3


def sets_of(
    prefix: str, probes: ForgettingConfig, vocab_size: int, cut: tuple[int, int, int], unit: int
) -> list[WindowSet]:
    """A validation set of windows of 16, and the probes."""
    micro, dp_rank, dp_size = cut
    valid = [ValidSet("text", prefix, 16, 0, micro, dp_rank, dp_size)] if prefix else []
    return [*valid, *probe_sets(probes, SEED, vocab_size, cut, unit)]


def losses_by_window(
    checkpoint: str, prefix: str, probes: ForgettingConfig, layout: Layout, micro: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Set -> nats and tokens of its windows."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, layout, threads_per_rank=1) as session:
        chunks = build_chunks(arch, layout)
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, chunks)
        cut = (micro, session.dp_rank, session.topology.dp)
        found = {}
        for each in sets_of(prefix, probes, arch.vocab_size, cut, layout.sequence_unit):
            losses = evaluate_set(chunks, each, session.device.torch_device)
            found[each.name] = (losses.nats_W, losses.tokens_W)
        return found
