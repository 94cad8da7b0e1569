"""Causal attention over segments of different lengths, without a mask of the whole batch.

Place in the flow: below the core attention of the native backend. On a GPU and in 16 bits one call of torch's
variable-length flash attention; otherwise one call of torch's attention a segment, or with a window a block of its
queries. Invariant: both compute the same; in each segment the last query sees all keys, the one before all but the
last, and so on, and with a window each sees only the last so many of these.

Shapes: T queries, K keys of all segments, B batch, N query heads, G key/value groups, D head size, q, k one segment's.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cptron.model.segments import Segments

FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""What flash attention computes in; anything else goes segment by segment on GPUs too."""

WINDOW_BLOCK = 128
"""Queries of a block, at least, where attention with a window goes block by block."""

KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def varlen_attention(
    query_TND: torch.Tensor,
    key_KGD: torch.Tensor,
    value_KGD: torch.Tensor,
    segments: Segments,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """`[T, N, D]`; `query_starts` and `key_starts` are those of `segments`, on the device. `window`: the most keys
    that a query sees, its own token's included."""
    if query_TND.is_cuda and query_TND.dtype in FLASH_DTYPES:
        lengths = (query_starts, key_starts, segments.longest_query, segments.longest_key)
        return _on_gpu(query_TND, key_KGD, value_KGD, *lengths, scale, window)
    parts = []
    edges = zip(
        itertools.pairwise(segments.query_starts.tolist()),
        itertools.pairwise(segments.key_starts.tolist()),
        strict=True,
    )
    for (query_start, query_end), (key_start, key_end) in edges:
        keys = slice(key_start, key_end)
        one = (query_TND[query_start:query_end], key_KGD[keys], value_KGD[keys], scale)
        parts.append(_one_segment(*one) if window is None else _windowed_segment(*one, window))
    return torch.cat(parts)


def _on_gpu(
    query_TND: torch.Tensor,
    key_KGD: torch.Tensor,
    value_KGD: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """torch's variable-length flash attention, whose options have changed names from version to version."""
    from torch.nn.attention.varlen import varlen_attn

    offered = offered_options()
    if "window_size" in offered:
        before = -1 if window is None else window - 1
        options: dict[str, Any] = {"window_size": (before, 0)}
    else:
        assert window is None, "checked when the model is built"
        options = {"is_causal": True}
    if "scale" in offered:
        options["scale"] = scale
    else:
        assert math.isclose(scale, query_TND.size(-1) ** -0.5), "checked when the model is built"
    if "enable_gqa" in offered:
        options["enable_gqa"] = query_TND.size(1) != key_KGD.size(1)
    lengths = (query_starts, key_starts, longest_query, longest_key)
    context_TND = varlen_attn(query_TND, key_KGD, value_KGD, *lengths, **options)
    assert isinstance(context_TND, torch.Tensor), "no auxiliary output was asked for"
    return context_TND


@functools.cache
def offered_options() -> frozenset[str]:
    """Names of the arguments of this torch's variable-length attention; none where it has no such function."""
    if find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _one_segment(
    query_qND: torch.Tensor, key_kGD: torch.Tensor, value_kGD: torch.Tensor, scale: float
) -> torch.Tensor:
    num_queries, num_keys = len(query_qND), len(key_kGD)
    mask_qk = None
    if num_queries != num_keys:  # torch's causal flag would align the first tokens, not the last
        places_k = torch.arange(num_keys, device=query_qND.device)
        mask_qk = places_k <= places_k[num_keys - num_queries :, None]
    query, key, value = (x.transpose(0, 1)[None] for x in (query_qND, key_kGD, value_kGD))
    return causal_attention(query, key, value, scale, mask_qk)[0].transpose(0, 1)


def _windowed_segment(
    query_qND: torch.Tensor, key_kGD: torch.Tensor, value_kGD: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Block by block of queries, each with the keys that it can see: work and masks grow with the window, not with
    the square of the segment."""
    num_queries, offset = len(query_qND), len(key_kGD) - len(query_qND)
    block = max(window, WINDOW_BLOCK)
    parts = []
    for start in range(0, num_queries, block):
        stop = min(start + block, num_queries)
        first = max(0, offset + start - window + 1)
        places_q = torch.arange(offset + start, offset + stop, device=query_qND.device)[:, None]
        places_k = torch.arange(first, offset + stop, device=query_qND.device)
        mask_qk = (places_k <= places_q) & (places_k > places_q - window)
        keys = slice(first, offset + stop)
        tensors = (query_qND[start:stop], key_kGD[keys], value_kGD[keys])
        query, key, value = (x.transpose(0, 1)[None] for x in tensors)
        parts.append(causal_attention(query, key, value, scale, mask_qk)[0].transpose(0, 1))
    return torch.cat(parts)


def causal_attention(
    query_BNqD: torch.Tensor,
    key_BGkD: torch.Tensor,
    value_BGkD: torch.Tensor,
    scale: float,
    mask_qk: torch.Tensor | None = None,
) -> torch.Tensor:
    """torch's attention, causal, or as `mask_qk` says. On GPUs cuDNN before the older flash kernel, and never the one
    that materialises scores; which means repeated keys and values where only that one would broadcast them."""
    broadcast = query_BNqD.size(1) != key_BGkD.size(1)
    on_gpu = query_BNqD.is_cuda
    if broadcast and on_gpu and (query_BNqD.dtype not in FLASH_DTYPES or mask_qk is not None):
        repeat = query_BNqD.size(1) // key_BGkD.size(1)
        key_BGkD, value_BGkD = (x.repeat_interleave(repeat, 1) for x in (key_BGkD, value_BGkD))
        broadcast = False
    with sdpa_kernel(KERNELS, set_priority=True) if on_gpu else nullcontext():
        return F.scaled_dot_product_attention(
            query_BNqD,
            key_BGkD,
            value_BGkD,
            attn_mask=mask_qk,
            is_causal=mask_qk is None,
            scale=scale,
            enable_gqa=broadcast,
        )
