"""Causal attention over segments of different lengths, without a mask of the whole batch.

Place in the flow: below the core attention of the native backend. On a GPU one call of torch's variable-length flash
attention; on the CPU one call of torch's attention a segment. Invariant: both compute the same; in each segment the
last query sees all keys, the one before all but the last, and so on.

Shapes: T queries and K keys of all segments, N query heads, G key/value groups, D head size, q and k one segment's.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from cptron.model.segments import Segments


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
    if query_TND.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        context_TND: torch.Tensor = varlen_attn(  # type: ignore[assignment] # no auxiliary output is asked for
            query_TND,
            key_KGD,
            value_KGD,
            query_starts,
            key_starts,
            segments.longest_query,
            segments.longest_key,
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=query_TND.size(1) != key_KGD.size(1),
        )
        return context_TND
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


def _one_segment(
    query_qND: torch.Tensor, key_kGD: torch.Tensor, value_kGD: torch.Tensor, scale: float
) -> torch.Tensor:
    num_queries, num_keys = len(query_qND), len(key_kGD)
    mask_qk = None
    if num_queries != num_keys:  # torch's causal flag would align the first tokens, not the last
        places_q1 = torch.arange(num_keys - num_queries, num_keys)[:, None]
        mask_qk = torch.arange(num_keys) <= places_q1
    context_1NqD = F.scaled_dot_product_attention(
        query_qND.transpose(0, 1)[None],
        key_kGD.transpose(0, 1)[None],
        value_kGD.transpose(0, 1)[None],
        attn_mask=mask_qk,
        is_causal=mask_qk is None,
        scale=scale,
        enable_gqa=query_qND.size(1) != key_kGD.size(1),
    )
    return context_1NqD[0].transpose(0, 1)
