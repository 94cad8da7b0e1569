"""The probe: fixed tokens whose loss under `transformers` is recorded at import and demanded again at step 0.

Place in the flow: import writes it into the checkpoint's manifest, the trainer's gate and export
verification read it. Invariant: the recorded loss comes from `transformers` in fp32 alone, never from this
engine.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from cptron.checkpoint.layout import Probe
from cptron.convert.reference import reference_logits
from cptron.convert.source import WeightSource
from cptron.errors import ConversionError
from cptron.tokens.tokenizer import Tokenizer

TEXT = """The tide rises twice a day because the Moon pulls on the oceans, and the Earth turns beneath the bulge \
of water that this pull makes. Sailors learned the hours of high water long before anybody could explain them. \
In 1687 Newton gave the first account from gravity alone; a century later Laplace wrote the equations that are \
still used. To predict a harbour's tide today one measures its level for a year, finds the strength of some forty \
periodic parts, and adds them up again:

def height(hours, parts):
    return sum(amplitude * cos(speed * hours + phase) for amplitude, speed, phase in parts)

The largest part has a period of 12 hours and 25 minutes. Wind and air pressure are not in the sum, and so a storm \
can raise the sea by metres above the table's figure. Die Gezeiten folgen dem Mond, la marée suit la lune.
"""


def probe_tokens(tokenizer: Tokenizer | None, vocab_size: int, max_tokens: int) -> list[int]:
    """Token ids of the probe text; for a model that comes without a tokenizer, ids spread over the
    vocabulary. Raises `ConversionError` where the tokenizer is of a larger model."""
    if tokenizer is not None:
        token_ids = list(tokenizer.encode(TEXT))[:max_tokens]
        if max(token_ids, default=0) >= vocab_size:
            raise ConversionError(
                f"tokenizer {tokenizer.name} gives id {max(token_ids)}, but the model has {vocab_size} embeddings; "
                "give the model its own tokenizer, or add the rows that it lacks"
            )
        return token_ids
    return [(7919 * position + 13) % vocab_size for position in range(min(max_tokens, 128))]


def make_probe(config: dict[str, Any], source: WeightSource, token_ids: list[int]) -> Probe:
    """Loss on the tokens of the model of a Hugging Face `config`: mean over all but the first of
    -log p(token | before). Raises `ConversionError` where that is no number, with which nothing could be compared."""
    logits_SV = reference_logits(config, source, token_ids)
    loss = float(torch.nn.functional.cross_entropy(logits_SV[:-1], torch.tensor(token_ids[1:])))
    if not math.isfinite(loss):
        raise ConversionError(
            f"transformers computes a loss of {loss} on the probe; the weights are damaged, `cptron health` names the "
            "tensors: download the model again"
        )
    return Probe(token_ids=token_ids, loss_nats_per_token=loss)
