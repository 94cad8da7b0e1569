"""What the test of resized models runs on warm ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout


def convert(source: str, tokenizer: str, checkpoint: str, resized: str) -> None:
    """A checkpoint with rows for the tokenizer, and the same as a Hugging Face model."""
    from cptron.tokenizer.resize import import_resized, resize

    import_resized(Path(source), Path(tokenizer), Path(checkpoint))
    resize(Path(source), Path(tokenizer), Path(resized))


def vocabulary_shards(
    checkpoint: str, tp: int
) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """This rank's rows of the embedding and of the output matrix, where it is another one."""
    ranks = launched_ranks()
    assert ranks is not None
    layout = Layout(tp=tp, sequence_parallel=tp > 1)
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, layout, threads_per_rank=1):
        chunks = build_chunks(arch, layout, ModelOptions(precision="fp32"))
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, chunks)
        names = ("embedding.word_embeddings.weight", "output_layer.weight")
        found = dict(chunks[0].named_parameters())
        return {name: found[name].detach().float().numpy().copy() for name in names if name in found}
