"""Starts a run from a Hugging Face model without a checkpoint between: each rank reads the parts that it holds.

Place in the flow: preflight asks for the shape, setup for the weights. Invariant: the loss at step 0 is compared with
what `transformers` computes from the same files, as it is for a converted model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cptron.checkpoint.layout import Manifest, Probe
from cptron.checkpoint.names import stored_name
from cptron.convert.hf_import import (
    PROBE_TOKENS,
    content_identity,
    describe,
    require_tied_copy,
    stored_precision,
)
from cptron.convert.probe import make_probe, probe_tokens
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.small_files import find_tokenizer, small_files
from cptron.convert.weight_map import Part, layers_of, read_part
from cptron.model.architecture import Architecture
from cptron.model.vocab import padded_vocab_size
from cptron.optim.names import named_parameters
from cptron.runtime.dist import agree
from cptron.versions import installed_versions


def start_from(directory: Path) -> tuple[Architecture, str, str]:
    """Architecture, identity of the weights and fingerprint of the tokenizer (empty without one) of a model directory.

    Raises `ConversionError`.
    """
    reader = ModelReader(directory)
    _, arch = describe(reader)
    stored_precision(reader)
    tokenizer = find_tokenizer(directory)
    return arch, f"hugging_face {content_identity(reader)}", tokenizer.fingerprint if tokenizer else ""


@torch.no_grad()
def fill(chunks: Sequence[Any], reader: ModelReader, tp: int = 1, tp_rank: int = 0) -> None:
    """Fill this rank's chunks, and nothing else; not collective. Raises `ConversionError`."""
    family, arch = describe(reader)
    padded = padded_vocab_size(arch.vocab_size, tp)
    rules = {
        stored_name(rule.megatron.format(layer=layer)): (rule, layer)
        for rule in family.rules_for(arch)
        for layer in layers_of(rule, arch)
    }
    for name, parameter in named_parameters(chunks):
        rule, layer = rules[stored_name(name)]
        parameter.copy_(read_part(rule, arch, layer, reader.read_range, padded, Part(tp_rank, tp)))


def load_direct(
    directory: Path, chunks: Sequence[Any], tp: int, tp_rank: int, identity: str
) -> tuple[Manifest, dict[str, bytes]]:
    """Fill the chunks from the model in `directory`; collective. Returns what a checkpoint of it would say of itself,
    and its small files.

    The first rank lets `transformers` compute the loss on the probe, one parameter at a time; the others wait.
    """
    reader = agree(lambda: ModelReader(directory))
    family, arch = agree(lambda: describe(reader))
    agree(lambda: fill(chunks, reader, tp, tp_rank))
    tokenizer = agree(lambda: find_tokenizer(directory))
    token_ids = probe_tokens(tokenizer, arch.vocab_size, min(PROBE_TOKENS, arch.max_position_embeddings))
    is_main = dist.get_rank() == 0
    agree(lambda: require_tied_copy(reader, family, arch) if is_main else None)
    found: list[Probe | None] = [
        agree(lambda: make_probe(reader.config, reader, token_ids) if is_main else None)
    ]
    dist.broadcast_object_list(found, src=0)
    probe = found[0]
    assert probe is not None
    manifest = Manifest(
        kind="weights",
        step=0,
        tokens_total=0,
        architecture=arch.to_dict(),
        hugging_face_model=directory.resolve().name,
        lineage=(directory.resolve().name,),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "",
        weights_fingerprint=identity,
        probe=probe,
        precision=stored_precision(reader),
        versions=installed_versions(),
    )
    carried = small_files(directory) if is_main else []
    return manifest, {path.name: path.read_bytes() for path in carried}
