"""Attention with windows against a dense mask, token by token, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.model import varlen
from cptron.model.flops import sum_of_squares
from cptron.model.segments import Int32Array, document_lengths, local_tokens, segments_of


@st.composite
def rows_of_documents(draw: st.DrawFn) -> tuple[Int32Array, int]:
    """Documents `[B, S]` of rows, and a number of context ranks that cuts them."""
    cp = draw(st.sampled_from([1, 1, 2, 3]))
    size = draw(st.integers(1, 6))
    seq_length = size * 2 * cp if cp > 1 else draw(st.integers(1, 30))
    rows = draw(st.integers(1, 2))
    row = st.lists(st.booleans(), min_size=seq_length, max_size=seq_length)
    begins_BS = np.array(draw(st.lists(row, min_size=rows, max_size=rows)))
    begins_BS[:, 0] = False
    if draw(st.booleans()):
        begins_BS[...] = False
    return np.cumsum(begins_BS, axis=1).astype(np.int32), cp


@settings(deadline=None, max_examples=80)
@given(rows_of_documents(), st.integers(1, 33), st.integers(1, 8))
def test_a_token_sees_the_window_within_its_document(
    given_documents: tuple[Int32Array, int], window: int, block: int
) -> None:
    """Each context rank's queries, in blocks of any size, against softmax under a mask written from the definition."""
    documents_BS, cp = given_documents
    rows, width = documents_BS.shape
    q, k, v = (torch.randn(rows, width, heads, 4) for heads in (4, 2, 2))
    places = np.arange(width)
    same_BSS = documents_BS[:, :, None] == documents_BS[:, None, :]
    near_SS = (places[None] <= places[:, None]) & (places[None] > places[:, None] - window)
    mask_B1SS = torch.from_numpy(same_BSS & near_SS)[:, None]
    expected_BSND = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask_B1SS, scale=0.7, enable_gqa=True
    ).transpose(1, 2)
    usual, varlen.WINDOW_BLOCK = varlen.WINDOW_BLOCK, block
    try:
        for cp_rank in range(cp):
            segments = segments_of(documents_BS, cp, cp_rank)
            here = local_tokens(width, cp, cp_rank)
            keys, values = (
                torch.cat([x[row, start:stop] for row, start, stop in segments.key_slices]) for x in (k, v)
            )
            starts = (torch.from_numpy(segments.query_starts), torch.from_numpy(segments.key_starts))
            queries = q[:, here].flatten(0, 1)
            found_TND = varlen.varlen_attention(queries, keys, values, segments, *starts, 0.7, window)
            torch.testing.assert_close(found_TND, expected_BSND[:, here].flatten(0, 1), rtol=1e-5, atol=1e-6)
    finally:
        varlen.WINDOW_BLOCK = usual


@settings(deadline=None)
@given(rows_of_documents(), st.integers(1, 40))
def test_flops_count_the_window(given_documents: tuple[Int32Array, int], window: int) -> None:
    """Twice the pairs of tokens that see each other, less the diagonal's share, as without a window."""
    documents_BS, _ = given_documents
    pairs = sum(
        2 * sum(min(place + 1, window) for place in range(length)) - min(length, window)
        for documents_S in documents_BS
        for length in np.unique(documents_S, return_counts=True)[1].tolist()
    )
    assert sum_of_squares(documents_BS, window) == pairs
    assert sum_of_squares(documents_BS, documents_BS.shape[1]) == sum_of_squares(documents_BS)


@given(rows_of_documents())
def test_lengths_of_documents(given_documents: tuple[Int32Array, int]) -> None:
    """As counted one by one."""
    documents_BS, _ = given_documents
    for row, lengths in zip(documents_BS.tolist(), document_lengths(documents_BS).tolist(), strict=True):
        assert lengths == [row.count(document) for document in row]


def test_flops_of_layers_with_and_without_a_window() -> None:
    """Three of four layers have one; a model with windows cannot be counted without them."""
    from dataclasses import replace

    from small_arch import SMALL

    from cptron.model.flops import attention_flops, train_flops

    plain = replace(SMALL, num_layers=4)
    windowed = replace(plain, sliding_window=10, windowed_layers=(0, 1, 2))
    one_layer = attention_flops(replace(plain, num_layers=1), [1])
    assert attention_flops(windowed, [100]) == one_layer * (10000 + 3 * (10000 - 8100))
    assert train_flops(windowed, 100, 10000, 1900) - train_flops(plain, 100, 0) == attention_flops(
        windowed, [100]
    )
    with pytest.raises(AssertionError):
        train_flops(windowed, 100, 10000)
