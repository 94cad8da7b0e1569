"""Segments against brute force: which key each query may see, token by token."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cptron.model.segments import document_positions, local_tokens, segments_of


@st.composite
def documents(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Documents `[B, S]` of rows, and a number of context ranks that cuts them."""
    cp = draw(st.sampled_from([1, 1, 2, 3, 4]))
    size = draw(st.integers(1, 5))
    seq_length = size * 2 * cp if cp > 1 else draw(st.integers(1, 20))
    rows = draw(st.integers(1, 3))
    row = st.lists(st.booleans(), min_size=seq_length, max_size=seq_length)
    begins_BS = np.array(draw(st.lists(row, min_size=rows, max_size=rows)))
    begins_BS[:, 0] = False
    return np.cumsum(begins_BS, axis=1).astype(np.int32), cp


@given(documents())
def test_every_query_sees_its_document_up_to_itself(given_documents: tuple[np.ndarray, int]) -> None:
    """Over all context ranks every (row, token) is a query once, and its keys are the right ones in order."""
    documents_BS, cp = given_documents
    rows, seq_length = documents_BS.shape
    seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for cp_rank in range(cp):
        found = segments_of(documents_BS, cp, cp_rank)
        here = [(row, int(place)) for row in range(rows) for place in local_tokens(seq_length, cp, cp_rank)]
        keys = [(row, place) for row, start, stop in found.key_slices for place in range(start, stop)]
        assert found.query_starts[-1] == len(here) and found.key_starts[-1] == len(keys)
        assert found.longest_query == max(np.diff(found.query_starts))
        for number in range(len(found.query_starts) - 1):
            queries = here[found.query_starts[number] : found.query_starts[number + 1]]
            sees = keys[found.key_starts[number] : found.key_starts[number + 1]]
            for index, query in enumerate(
                queries
            ):  # the last query sees all keys, the one before all but one
                assert query not in seen
                seen[query] = sees[: len(sees) - (len(queries) - 1 - index)]
    assert seen == {
        (row, place): [
            (row, key) for key in range(place + 1) if documents_BS[row, key] == documents_BS[row, place]
        ]
        for row in range(rows)
        for place in range(seq_length)
    }


@given(documents())
def test_whole_rows_are_recognised(given_documents: tuple[np.ndarray, int]) -> None:
    """Plain causal attention exactly where no row has a second document and nothing is cut."""
    documents_BS, cp = given_documents
    one_each = bool((documents_BS == documents_BS[:, :1]).all())
    assert segments_of(documents_BS, cp, cp - 1).whole_rows == (one_each and cp == 1)


@given(documents())
def test_positions_count_from_the_start_of_each_document(given_documents: tuple[np.ndarray, int]) -> None:
    """As counted one by one."""
    documents_BS, _ = given_documents
    for row, positions in zip(documents_BS.tolist(), document_positions(documents_BS).tolist(), strict=True):
        assert positions == [row[:place].count(document) for place, document in enumerate(row)]


@given(st.integers(1, 6), st.integers(1, 5))
def test_zig_zag_gives_all_ranks_equal_work(cp: int, size: int) -> None:
    """Every token is on one rank, and causal work (keys seen) differs by no key between ranks."""
    seq_length = 2 * cp * size
    parts = [local_tokens(seq_length, cp, rank) for rank in range(cp)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(seq_length))
    assert len({int((part + 1).sum()) for part in parts}) == 1
