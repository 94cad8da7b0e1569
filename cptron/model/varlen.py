"""Causal attention over segments of different lengths, without a mask of the whole batch.

Place in the flow: below the core attention of the native backend. On a GPU and in 16 bits one call of torch's
variable-length flash attention; otherwise one call of torch's attention a segment. Invariant: both compute the same; in
each segment the last query sees all keys, the one before all but the last, and so on.

Shapes: T queries, K keys of all segments, B batch, N query heads, G key/value groups, D head size, q, k one segment's.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cptron.model.segments import Segments

FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""What flash attention computes in; anything else goes segment by segment on GPUs too."""


KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def varlen_attention(
    query_TND: torch.Tensor,
    key_KGD: torch.Tensor,
    value_KGD: torch.Tensor,
    segments: Segments,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`[T, N, D]`; `query_starts` and `key_starts` are those of `segments`, on the device."""
    if query_TND.is_cuda and query_TND.dtype in FLASH_DTYPES:
        lengths = (query_starts, key_starts, segments.longest_query, segments.longest_key)
        return _on_gpu(query_TND, key_KGD, value_KGD, *lengths, scale)
    parts = []
    edges = zip(
        itertools.pairwise(segments.query_starts.tolist()),
        itertools.pairwise(segments.key_starts.tolist()),
        strict=True,
    )
    for (query_start, query_end), (key_start, key_end) in edges:
        keys = slice(key_start, key_end)
        parts.append(_one_segment(query_TND[query_start:query_end], key_KGD[keys], value_KGD[keys], scale))
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
) -> torch.Tensor:
    """torch's variable-length flash attention, whose options have changed names from version to version."""
    from torch.nn.attention.varlen import varlen_attn

    offered = _offered_options()
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in offered else {"is_causal": True}
    if "scale" in offered:
        options["scale"] = scale
    else:
        assert math.isclose(scale, query_TND.size(-1) ** -0.5), "this torch knows the usual scale only"
    if "enable_gqa" in offered:
        options["enable_gqa"] = query_TND.size(1) != key_KGD.size(1)
    lengths = (query_starts, key_starts, longest_query, longest_key)
    context_TND = varlen_attn(query_TND, key_KGD, value_KGD, *lengths, **options)
    assert isinstance(context_TND, torch.Tensor), "no auxiliary output was asked for"
    return context_TND


@functools.cache
def _offered_options() -> frozenset[str]:
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
