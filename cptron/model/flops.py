"""Model FLOPs of training: what the arithmetic of a forward and a backward pass comes to.

Place in the flow: the throughput and the model FLOPs utilisation that a run reports are made of these. Invariant:
the count depends on the model and the documents only, never on how it is computed: recomputed activations, padded
vocabulary rows and masked-out halves of attention are not counted (model FLOPs: Chowdhery et al. 2022, PaLM,
appendix B).

Only matrix products count, a multiplication and an addition each; the backward pass costs twice the forward one.

Shapes: B rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cptron.model.architecture import Architecture


def matmul_flops_per_token(arch: Architecture) -> int:
    """FLOPs of one token in all products with weights: 6 for each weight, the output layer included also where it
    is tied, the embedding table not (Kaplan et al. 2020, section 2.1)."""
    heads = arch.num_attention_heads * arch.head_dim
    keys_and_values = 2 * arch.num_kv_heads * arch.head_dim
    attention = arch.hidden_size * (heads + keys_and_values) + heads * arch.hidden_size
    mlp = 3 * arch.hidden_size * arch.ffn_hidden_size
    weights = arch.num_layers * (attention + mlp) + arch.hidden_size * arch.vocab_size
    return 6 * weights


def attention_flops(arch: Architecture, lengths: Iterable[int]) -> int:
    """FLOPs of scores and their products with the values, causal, for documents of these lengths that do not see
    each other: 6 * layers * heads * head_dim * the sum of length^2, less what windows leave out.

    A full square of scores costs 4 * heads * head_dim * length^2 in the two products of the forward pass, half of it
    is below the diagonal (so counted in Dao 2023, FlashAttention-2), and the backward pass costs twice that.
    """
    sizes = [int(length) for length in lengths]
    squares = sum(size**2 for size in sizes)
    return _attention(arch, squares, sum(_square(size, arch.sliding_window) for size in sizes))


def train_flops(
    arch: Architecture, num_tokens: int, sum_of_squares: int, windowed_squares: int | None = None
) -> int:
    """FLOPs of a forward and a backward pass over `num_tokens` tokens in documents whose squared lengths sum to
    `sum_of_squares` (`seq_length ** 2` for each sequence where documents are not told apart). `windowed_squares`: the
    same sum under the architecture's window; models that have one need it."""
    windowed = sum_of_squares if windowed_squares is None else int(windowed_squares)
    assert windowed_squares is not None or arch.sliding_window is None
    return matmul_flops_per_token(arch) * int(num_tokens) + _attention(arch, int(sum_of_squares), windowed)


def sum_of_squares(documents_BS: npt.NDArray[np.int32], window: int | None = None) -> int:
    """Sum of the squared lengths of all documents of all rows, given each token's document; with a window, of the
    part of each square, twice what is below the diagonal, in which a token sees another.

    A document is a run of equal numbers within a row; places that hold no token are one more document and count.
    """
    begins_BS = np.ones(documents_BS.shape, dtype=np.bool_)
    begins_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    starts = np.flatnonzero(begins_BS)
    lengths = np.diff(starts, append=documents_BS.size).astype(np.int64)
    left_out = np.maximum(lengths - window, 0) if window is not None else np.zeros_like(lengths)
    return int(np.dot(lengths, lengths) - np.dot(left_out, left_out))


def _square(length: int, window: int | None) -> int:
    """length^2 less the square beyond the window."""
    return length**2 - (max(length - window, 0) ** 2 if window is not None else 0)


def _attention(arch: Architecture, squares: int, windowed_squares: int) -> int:
    windowed = len(arch.windowed_layers)
    over_layers = (arch.num_layers - windowed) * squares + windowed * windowed_squares
    return 6 * arch.num_attention_heads * arch.head_dim * over_layers
