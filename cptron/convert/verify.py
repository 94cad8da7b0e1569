"""Proof that a checkpoint and a Hugging Face model are the same model.

Place in the flow: after import and after export. Invariant: the two sides share nothing but the files:
`transformers` computes one, the engine the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cptron.checkpoint import layout
from cptron.convert.probe import reference_logits
from cptron.errors import ConversionError


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences over the probe's tokens, in fp32."""

    max_abs_logit_difference: float
    engine_loss_nats_per_token: float
    transformers_loss_nats_per_token: float
    tokens: int


def engine_logits(checkpoint: Path, token_ids: list[int], base: Path | None = None) -> torch.Tensor:
    """Logits `[S, V]` of the checkpoint computed by the engine in fp32, padding columns removed."""
    from cptron.checkpoint.weights import open_model
    from cptron.runtime.session import open_session

    manifest = layout.read_manifest(checkpoint)
    with open_session() as session, torch.no_grad():
        model = open_model(checkpoint, base=base).eval()
        tokens_BS = torch.tensor([token_ids], device=session.device.torch_device)
        return model(tokens_BS)[0, :, : manifest.arch.vocab_size].cpu()  # type: ignore[no-any-return]


def compare(checkpoint: Path, hugging_face: Path, base: Path | None = None) -> Comparison:
    """Run both on the checkpoint's probe tokens. `base`: where an adapter's base is now."""
    token_ids = layout.read_manifest(checkpoint).probe.token_ids
    ours = engine_logits(checkpoint, token_ids, base)
    theirs = reference_logits(hugging_face, token_ids)
    labels = torch.tensor(token_ids[1:])
    return Comparison(
        float((ours - theirs).abs().max()),
        float(torch.nn.functional.cross_entropy(ours[:-1], labels)),
        float(torch.nn.functional.cross_entropy(theirs[:-1], labels)),
        len(token_ids),
    )


def require_equal(
    checkpoint: Path, hugging_face: Path, tolerance: float = 1e-3, base: Path | None = None
) -> Comparison:
    """`compare`, and `ConversionError` when a logit differs by more than `tolerance`."""
    found = compare(checkpoint, hugging_face, base)
    if not found.max_abs_logit_difference <= tolerance:
        raise ConversionError(
            f"{hugging_face} and {checkpoint} differ by {found.max_abs_logit_difference:.3g} in a logit, more than "
            f"{tolerance:g}; they are not the same model"
        )
    return found
