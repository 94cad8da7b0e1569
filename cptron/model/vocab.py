"""Vocabulary padding: megatron-core cuts the embedding evenly over tensor ranks.

Place in the flow: `model.build`, conversion and the loss agree on it here. Invariant: padding rows never
take part in the softmax and never leave in an export.
"""

from __future__ import annotations

import math

MULTIPLE = 128
"""Rows are padded to a multiple of this (and of the tensor parallel size), for efficient matrix products."""


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Rows of the embedding over all tensor ranks."""
    multiple = math.lcm(MULTIPLE, tp)
    return -(-vocab_size // multiple) * multiple
