"""Which keys each stretch of queries attends to: documents, and the cut of a sequence over context ranks.

Place in the flow: made once a micro-batch from the documents of its samples, used by attention in every layer.
Numpy only. Invariant: a query attends to exactly the keys of its own document up to itself, whatever the cut.

Shapes: B rows, S tokens of the whole sequence, N segments. With context parallelism a sequence is cut into
2 * cp chunks, and rank r holds chunks r and 2 * cp - 1 - r (zig-zag: causal work is then equal on all ranks).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Segments:
    """Stretches of this rank's queries, each with the stretch of keys it sees; both end at the same token.

    Queries are in the order of the rank's rows and tokens. The keys are the slices `key_slices` of the whole
    sequences, one after the other.
    """

    query_starts: Int32Array
    """`[N + 1]`: where each segment's queries begin, and the end of the last."""
    key_starts: Int32Array
    """`[N + 1]`: where each segment's keys begin among the keys of all slices."""
    key_slices: tuple[tuple[int, int, int], ...]
    """(row, first token, end) of the whole sequences."""
    whole_rows: bool
    """Every row is one document, and all of it is on this rank: plain causal attention."""
    longest_query: int
    """Queries of the longest segment."""
    longest_key: int
    """Keys of the longest segment."""


def chunks_of(seq_length: int, cp: int, cp_rank: int) -> list[tuple[int, int]]:
    """(first token, end) of what a context rank holds, in its order."""
    if cp == 1:
        return [(0, seq_length)]
    assert seq_length % (2 * cp) == 0, "checked with the configuration"
    size = seq_length // (2 * cp)
    return [(chunk * size, (chunk + 1) * size) for chunk in (cp_rank, 2 * cp - 1 - cp_rank)]


def local_tokens(seq_length: int, cp: int, cp_rank: int) -> npt.NDArray[np.int64]:
    """Places in the whole sequence of the tokens that a context rank holds."""
    return np.concatenate([np.arange(start, stop) for start, stop in chunks_of(seq_length, cp, cp_rank)])


def segments_of(documents_BS: Int32Array, cp: int = 1, cp_rank: int = 0) -> Segments:
    """Segments of one context rank. A run of equal numbers in a row of `documents_BS` is one document."""
    queries: list[int] = []
    keys: list[int] = []
    slices: list[tuple[int, int, int]] = []
    seq_length = documents_BS.shape[1]
    for row, documents_S in enumerate(documents_BS):
        begins = np.flatnonzero(np.diff(documents_S)) + 1
        for start, stop in chunks_of(seq_length, cp, cp_rank):
            before = begins[begins <= start]
            first_key = int(before[-1]) if len(before) else 0
            inside = begins[(begins > start) & (begins < stop)].tolist()
            lengths = [end - begin for begin, end in itertools.pairwise([start, *inside, stop])]
            queries += lengths
            keys += [lengths[0] + start - first_key, *lengths[1:]]
            slices.append((row, first_key, stop))
    if cp == 1:
        slices = [(row, 0, seq_length) for row in range(len(documents_BS))]
    whole = cp == 1 and len(queries) == len(documents_BS)
    return Segments(_starts(queries), _starts(keys), tuple(slices), whole, max(queries), max(keys))


def document_positions(documents_BS: Int32Array) -> npt.NDArray[np.int64]:
    """Places counted from the start of each document `[B, S]`."""
    places_S = np.arange(documents_BS.shape[1])
    begins_BS = np.zeros(documents_BS.shape, np.int64)
    begins_BS[:, 1:] = np.where(np.diff(documents_BS, axis=1) != 0, places_S[1:], 0)
    return places_S - np.maximum.accumulate(begins_BS, axis=1)


def document_lengths(documents_BS: Int32Array) -> npt.NDArray[np.int64]:
    """Tokens of the document of each token `[B, S]`."""
    found_BS = np.empty(documents_BS.shape, np.int64)
    for row, documents_S in enumerate(documents_BS):
        edges = [0, *(np.flatnonzero(np.diff(documents_S)) + 1).tolist(), len(documents_S)]
        lengths = np.diff(edges)
        found_BS[row] = np.repeat(lengths, lengths)
    return found_BS


def _starts(lengths: list[int]) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
