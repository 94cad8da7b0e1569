"""Proof that a checkpoint and a Hugging Face model are the same model.

Place in the flow: after import and after export. Invariant: every bit of every tensor is compared; and for the logits
the two sides share nothing but the files: `transformers` computes one, the engine the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from cptron.checkpoint import layout
from cptron.checkpoint.names import stored_name
from cptron.convert.hf_export import bytes_in_hand, open_source, tensors_in_order
from cptron.convert.hf_import import describe, require_tied_copy
from cptron.convert.reference import reference_logits
from cptron.convert.safetensors_io import ModelReader
from cptron.convert.shard_stream import num_workers
from cptron.convert.source import ShardSource
from cptron.convert.weight_map import layers_of
from cptron.errors import ConversionError


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tensors bit for bit, logits over the probe's tokens in fp32."""

    tensors: int
    bytes: int
    max_abs_logit_difference: float
    engine_loss_nats_per_token: float
    transformers_loss_nats_per_token: float
    tokens: int


def require_equal(
    checkpoint: Path, hugging_face: Path, tolerance: float = 1e-3, base: Path | None = None
) -> Comparison:
    """Compare every tensor, then the logits on the checkpoint's probe.

    Raises `ConversionError` when a bit differs, after rounding to the type of the Hugging Face tensor, or a logit by
    more than `tolerance`. `base`: where an adapter's base is now.
    """
    reader = ModelReader(hugging_face)
    tensors, num_bytes = compare_bits(checkpoint, reader, base)
    found = compare_logits(checkpoint, reader, base)
    if not found.max_abs_logit_difference <= tolerance:
        raise ConversionError(
            f"{hugging_face} and {checkpoint} differ by {found.max_abs_logit_difference:.3g} in a logit, more than "
            f"{tolerance:g}; they are not the same model"
        )
    return Comparison(tensors, num_bytes, *found.values)


def compare_bits(checkpoint: Path, reader: ModelReader, base: Path | None = None) -> tuple[int, int]:
    """Number and bytes of the tensors, all of which are equal; raises `ConversionError` naming those that are not."""
    manifest = layout.read_manifest(checkpoint)
    family, arch = describe(reader)
    if arch != manifest.arch:
        different = [key for key, value in arch.to_dict().items() if manifest.architecture.get(key) != value]
        raise ConversionError(
            f"{reader.directory} and {checkpoint} have different {', '.join(different)}; they are not the same model"
        )
    require_tied_copy(reader, family, arch)
    source = open_source(checkpoint, base)
    names = [name for name, _ in tensors_in_order(family, arch)]
    num_bytes = sum(reader.read(name).nbytes for name in names)
    bar = tqdm(total=num_bytes, desc="compare", unit="B", unit_scale=True, disable=None)

    def is_equal(name: str) -> bool:
        theirs = reader.read(name)
        bar.update(theirs.nbytes)
        return _same_bits(source.read(name).to(theirs.dtype), theirs)

    with bar, ThreadPoolExecutor(num_workers(bytes_in_hand(family, arch, manifest.precision))) as pool:
        wrong = [name for name, same in zip(names, pool.map(is_equal, names), strict=True) if not same]
    if wrong:
        raise ConversionError(
            f"{reader.directory} and {checkpoint} differ in {len(wrong)} tensor(s), first {wrong[0]}; "
            "they are not the same model"
        )
    return len(names), num_bytes


def _same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal to the bit, which a NaN is not by value."""
    return ours.shape == theirs.shape and torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@dataclass(frozen=True, slots=True)
class Logits:
    """How far two sets of logits are apart."""

    max_abs_logit_difference: float
    engine_loss_nats_per_token: float
    transformers_loss_nats_per_token: float
    tokens: int

    @property
    def values(self) -> tuple[float, float, float, int]:
        """All fields."""
        return (
            self.max_abs_logit_difference,
            self.engine_loss_nats_per_token,
            self.transformers_loss_nats_per_token,
            self.tokens,
        )


def compare_logits(checkpoint: Path, reader: ModelReader, base: Path | None = None) -> Logits:
    """Run the engine and `transformers` on the checkpoint's probe tokens."""
    token_ids = layout.read_manifest(checkpoint).probe.token_ids
    ours = engine_logits(checkpoint, token_ids, base)
    theirs = reference_logits(reader.config, reader, token_ids)
    labels = torch.tensor(token_ids[1:])
    return Logits(
        float((ours - theirs).abs().max()),
        float(torch.nn.functional.cross_entropy(ours[:-1], labels)),
        float(torch.nn.functional.cross_entropy(theirs[:-1], labels)),
        len(token_ids),
    )


def engine_logits(checkpoint: Path, token_ids: list[int], base: Path | None = None) -> torch.Tensor:
    """Logits `[S, V]` of the checkpoint computed by the engine in fp32, padding columns removed.

    A layer at a time is in memory, save where an adapter stands beside its base.
    """
    from cptron.checkpoint.weights import open_model
    from cptron.runtime.session import open_session

    manifest = layout.read_manifest(checkpoint)
    with open_session() as session, torch.no_grad():
        tokens_BS = torch.tensor([token_ids], device=session.device.torch_device)
        if manifest.adapter is not None:
            logits = open_model(checkpoint, base=base).eval()(tokens_BS)
        else:
            source = open_source(checkpoint)
            assert isinstance(source, ShardSource)
            logits = _by_layers(source, tokens_BS)
        return logits[0, :, : manifest.arch.vocab_size].cpu()  # type: ignore[no-any-return]


def _by_layers(source: ShardSource, tokens_BS: torch.Tensor) -> torch.Tensor:
    from cptron.model.build import build_slice
    from cptron.model.options import ModelOptions

    output = torch.empty(0)
    for layer in range(source.arch.num_layers):
        part = build_slice(source.arch, range(layer, layer + 1), ModelOptions(random_weights=False)).eval()
        if layer > 0:
            part.set_input_tensor(output)
        _fill(part, source, layer)
        output = part(tokens_BS)
    return output


def _fill(part: torch.nn.Module, source: ShardSource, layer: int) -> None:
    """Give every parameter of one layer's slice its values; rows that pad the vocabulary stay zero."""
    family, arch = source.family, source.arch
    rules = {
        stored_name(rule.megatron.format(layer=number)): (rule, number)
        for rule in family.rules_for(arch)
        for number in layers_of(rule, arch)
    }
    for name, parameter in part.named_parameters():
        is_tied = name == "output_layer.weight" and arch.tied_embeddings
        whole = (
            "embedding.word_embeddings.weight"
            if is_tied
            else name.replace("layers.0.", f"layers.{layer}.", 1)
        )
        tensor = source.megatron(*rules[stored_name(whole)])
        rows = arch.vocab_size if rules[stored_name(whole)][0].layout == "vocab" else len(tensor)
        parameter.data.zero_()
        parameter.data[:rows].copy_(tensor[:rows])
