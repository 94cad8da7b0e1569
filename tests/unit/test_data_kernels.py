"""Permutations and epochs: the compiled kernels against plain Python and against their promises."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter

import kernels_reference as reference
import numpy as np
import pytest
from data_world import numbered
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.data.kernels import JoinedEpoch, PackedEpoch, Permutation, Tokens, joined_starts, packed_starts

KEYS = st.integers(0, 2**64 - 1)
LENGTHS = st.lists(st.integers(1, 25), min_size=1, max_size=150)
NO_BYTES = np.zeros(0, np.uint8)


def tokens_of(
    lengths: list[int], data: np.ndarray | None = None, *, learned: np.ndarray = NO_BYTES, **options: bool
) -> Tokens:
    """A file whose tokens are 0, 1, 2, ..., or `data`."""
    data = np.arange(sum(lengths), dtype=np.int32) if data is None else data
    lengths_i4, width = np.array(lengths, "<i4"), data.dtype.itemsize
    pointers = width * (np.cumsum(lengths_i4, dtype=np.int64) - lengths_i4)
    parts = lengths_i4.view(np.uint8), pointers.view(np.uint8), data.view(np.uint8)
    return Tokens(*parts, width, learned, **options)


def documents_of(lengths: list[int]) -> list[list[int]]:
    """The same file as lists."""
    ends = list(itertools.accumulate(lengths))
    return [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]


def read(
    epoch: JoinedEpoch | PackedEpoch, seq_length: int, samples: list[int], vocab_size: int = 0
) -> list[np.ndarray]:
    """Inputs, labels, mask and documents of some samples."""
    shape = (len(samples), seq_length)
    out = [np.full(shape, 7, dtype) for dtype in (np.int64, np.int64, np.float32, np.int32)]
    epoch.read(np.array(samples, np.int64), *out, vocab_size)
    return out


def test_splitmix64_gives_its_published_numbers() -> None:
    """The first draws from key 0, as in the authors' implementation; kernel and twin could err together."""
    assert reference.splitmix64(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 700) | st.integers(4000, 4200), KEYS)
def test_permutation_is_the_documented_one(n: int, key: int) -> None:
    """Equal to the twin, on both sides of the size from which four rounds are enough; a bijection."""
    kernel = Permutation(n, key)
    found = [kernel(index) for index in range(n)]
    assert found == reference.permutation(n, key)
    assert sorted(found) == list(range(n))


@pytest.mark.parametrize("n", [2**31 + 1, 10**13, 2**61 + 12345, 2**62])
def test_huge_permutations_stay_in_range(n: int) -> None:
    """No two of a few thousand elements alike, spread over the whole."""
    kernel = Permutation(n, 3)
    found = {kernel(index) for index in [*range(2000), *range(n - 2000, n)]}
    assert len(found) == 4000 and 0 <= min(found) < n // 500 and n - n // 500 < max(found) < n
    with pytest.raises(IndexError):
        kernel(n)


@pytest.mark.parametrize(("n", "keys"), [(2, 4000), (3, 6000), (5, 10000), (8, 8000), (16, 8000)])
def test_every_place_is_equally_likely(n: int, keys: int) -> None:
    """Chi-square of (element, place) over keys, at six standard deviations."""
    counts = np.zeros((n, n))
    for key in range(keys):
        kernel = Permutation(n, key)
        for index in range(n):
            counts[index, kernel(index)] += 1
    degrees = (n - 1) ** 2
    chi_square = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert abs(chi_square - degrees) < 6 * np.sqrt(2 * degrees) + 6


def test_neighbours_are_torn_apart() -> None:
    """Distances of neighbours in a large permutation are as those of random pairs: chi-square over 50 bins."""
    n = 10**6 + 3
    kernel = Permutation(n, 11)
    places = np.array([kernel(index) for index in range(200_000)])
    counts = np.histogram(np.diff(places) % n, bins=50, range=(0, n))[0]
    expected = counts.mean()
    assert abs(((counts - expected) ** 2 / expected).sum() - 49) < 6 * np.sqrt(98)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 12), KEYS, KEYS, st.integers(1, 3))
def test_joined_epoch_is_the_documented_one(
    lengths: list[int], seq_length: int, document_key: int, sample_key: int, threads: int
) -> None:
    """Spans, rows and accounts against the twin: every token but the first is a label once."""
    if sum(lengths) < 2:
        return
    file = tokens_of(lengths)
    epoch = JoinedEpoch(
        file, joined_starts(file, document_key, threads), document_key, sample_key, seq_length
    )
    expected = reference.joined(documents_of(lengths), seq_length, document_key, sample_key)
    assert epoch.num_samples == len(expected)
    starts = [document[0] for document in documents_of(lengths)]
    stream = [
        t for at in reference.permutation(len(lengths), document_key) for t in documents_of(lengths)[at]
    ]
    order_of = {token: place for place, token in enumerate(stream)}
    inputs, labels, mask, documents = read(epoch, seq_length, list(range(epoch.num_samples)))
    for number, row in enumerate(expected):
        count = len(row) - 1
        assert inputs[number].tolist() == row[:-1] + [0] * (seq_length - count)
        assert labels[number].tolist() == row[1:] + [0] * (seq_length - count)
        assert mask[number].tolist() == [1.0] * count + [0.0] * (seq_length - count)
        assert documents[number].tolist() == numbered(lengths, row[:-1], seq_length)
        spans = [starts[d] + offset + i for d, offset, length in epoch.spans(number) for i in range(length)]
        assert spans == row
    seen = labels[mask == 1].tolist()
    assert len(seen) == len(set(seen)) == sum(lengths) - 1
    for number, row in enumerate(expected):
        begins = row if row[-1] == max(expected, key=lambda r: order_of[r[-1]])[-1] else row[:-1]
        assert epoch.count(np.array([number])) == (sum(token in starts for token in begins), len(row) - 1)
    assert epoch.count(np.arange(epoch.num_samples)) == (len(lengths), sum(lengths) - 1)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 12), KEYS, KEYS)
def test_packed_epoch_is_the_documented_one(
    lengths: list[int], seq_length: int, document_key: int, sample_key: int
) -> None:
    """No row cuts a document that fits; every token but a document's first is a label once."""
    if max(lengths) < 2:
        return
    file = tokens_of(lengths)
    epoch = PackedEpoch(
        file, packed_starts(file, document_key, seq_length, 2), document_key, sample_key, seq_length
    )
    documents = documents_of(lengths)
    rows = reference.best_fit(documents, seq_length, document_key)
    order = reference.permutation(len(rows), sample_key)
    assert epoch.num_samples == len(rows)
    inputs, labels, mask, numbers = read(epoch, seq_length, list(range(epoch.num_samples)))
    for number, at in enumerate(order):
        assert [(d, offset, length - 1) for d, offset, length in epoch.spans(number)] == rows[at]
        tokens = [documents[d][offset + i] for d, offset, count in rows[at] for i in range(count)]
        assert inputs[number][: len(tokens)].tolist() == tokens
        assert labels[number][: len(tokens)].tolist() == [token + 1 for token in tokens]
        assert mask[number].tolist() == [1.0] * len(tokens) + [0.0] * (seq_length - len(tokens))
        ids = [piece for piece, (*_, count) in enumerate(rows[at]) for _ in range(count)]
        assert numbers[number].tolist() == ids + [len(rows[at])] * (seq_length - len(ids))
    seen = labels[mask == 1].tolist()
    assert Counter(seen) == Counter(token for document in documents for token in document[1:])
    cut = [d for row in rows for d, _, count in row if count < len(documents[d]) - 1]
    assert all(len(documents[d]) - 1 > seq_length for d in cut)
    assert epoch.count(np.arange(epoch.num_samples)) == (sum(length > 1 for length in lengths), len(seen))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 1, 2, 5, 9, 30]), min_size=1, max_size=150),
    st.integers(1, 12),
    KEYS,
    st.booleans(),
    st.booleans(),
)
def test_documents_of_none_or_one_token(
    lengths: list[int], seq_length: int, key: int, packed: bool, has_mask: bool
) -> None:
    """Documents of a row by a walk over it; a first token is not learned where that is asked for, and nothing else
    of the row or of the account is another."""
    if sum(lengths) < 2 or (packed and max(lengths) < 2):
        return
    learned = np.random.default_rng(key).integers(0, 2, sum(lengths)).astype(np.uint8)
    if not has_mask:
        learned = NO_BYTES
    epochs = []
    for masked in (False, True):
        file = tokens_of(lengths, learned=learned, mask_beginnings=masked)
        starts = packed_starts(file, key, seq_length, 1) if packed else joined_starts(file, key, 1)
        epochs.append(
            (PackedEpoch if packed else JoinedEpoch)(file, starts, key, key + 1 & 2**64 - 1, seq_length)
        )
    plain, other = (read(epoch, seq_length, list(range(epoch.num_samples))) for epoch in epochs)
    firsts = {document[0] for document in documents_of(lengths) if document}
    for number in range(epochs[0].num_samples):
        inputs, labels, mask, documents = (array[number].tolist() for array in plain)
        count = epochs[0].count(np.array([number]))[1]
        pieces = [range(offset, offset + length) for _, offset, length in epochs[0].spans(number)]
        assert all(pieces) and len(pieces) in (
            documents[count - 1] + 1,
            documents[count - 1] + 1 + (not packed),
        )
        if packed:
            ids = [at for at, piece in enumerate(pieces) for _ in piece[:-1]]
            assert documents == ids + [len(pieces)] * (seq_length - count)
        else:
            assert documents == numbered(lengths, inputs[:count], seq_length)
        expected = [0.0 if label in firsts else value for label, value in zip(labels, mask, strict=True)]
        assert other[2][number].tolist() == (mask if packed else expected)
    for index in (0, 1, 3):
        assert (plain[index] == other[index]).all()
    every = np.arange(epochs[0].num_samples)
    assert epochs[0].count(every) == epochs[1].count(every)


def test_windows_join_without_a_seam() -> None:
    """Many windows of 64 and of 1,024 documents, and threads that share them."""
    lengths = np.random.default_rng(1).integers(1, 30, 5000).tolist()
    file = tokens_of(lengths)
    one, many = joined_starts(file, 5, 1), joined_starts(file, 5, 7)
    assert (one == many).all() and one[-1] == sum(lengths) and len(one) == -(-5000 // 64) + 1
    epoch = JoinedEpoch(file, one, 5, 6, 16)
    _, labels, mask, _ = read(epoch, 16, list(range(epoch.num_samples)))
    assert len(set(labels[mask == 1].tolist())) == sum(lengths) - 1
    packed = PackedEpoch(file, packed_starts(file, 5, 16, 3), 5, 6, 16)
    _, labels, mask, _ = read(packed, 16, list(range(packed.num_samples)))
    assert len(set(labels[mask == 1].tolist())) == sum(lengths) - 5000


def test_ten_trillion_tokens() -> None:
    """Offsets beyond 2^43 by a synthetic index; nothing overflows and nothing is built for it."""
    lengths = [2**31 - 1 - i for i in range(5000)]
    pointers = 2 * (np.cumsum(np.array(lengths, np.int64)) - np.array(lengths, np.int64))
    file = Tokens(
        np.array(lengths, "<i4").view(np.uint8), pointers.view(np.uint8), np.zeros(2, np.uint8), 2, NO_BYTES
    )
    total = sum(lengths)
    assert total > 10**13
    starts = joined_starts(file, 1, 2)
    assert starts[-1] == total
    epoch = JoinedEpoch(file, starts, 1, 2, 8192)
    assert epoch.num_samples == -(-(total - 1) // 8192)
    for sample in (0, 1, epoch.num_samples // 2, epoch.num_samples - 1):
        assert sum(length for *_, length in epoch.spans(sample)) in (8193, (total - 1) % 8192 + 1)
    with pytest.raises(IndexError, match=r"outside the \.bin"):
        read(epoch, 8192, [0])


def test_damage_and_misuse_are_errors() -> None:
    """Pointers beyond the file, running sums of another order, ids beyond the vocabulary, wrong types and shapes."""
    file = tokens_of([10, 10, 10], np.arange(25, dtype=np.int32))
    epoch = JoinedEpoch(file, joined_starts(file, 1, 1), 1, 2, 8)
    with pytest.raises(IndexError, match=r"outside the \.bin"):
        read(epoch, 8, [0, 1, 2, 3])
    negative = tokens_of([4], np.array([1, 2, -3, 4], np.int32))
    epoch = JoinedEpoch(negative, joined_starts(negative, 1, 1), 1, 2, 8)
    with pytest.raises(IndexError, match="token id -3 is outside the vocabulary of 10"):
        read(epoch, 8, [0], vocab_size=10)
    with pytest.raises(ValueError, match="starts"):
        JoinedEpoch(file, np.array([0, 5, 3], np.int64), 1, 2, 8)
    with pytest.raises(ValueError, match="starts must begin with 0"):
        JoinedEpoch(file, np.array([1, 30], np.int64), 1, 2, 8)
    with pytest.raises(ValueError, match="starts must begin with 0"):
        JoinedEpoch(file, np.array([0, 0], np.int64), 1, 2, 8)
    with pytest.raises(IndexError, match="disagree"):
        JoinedEpoch(file, np.array([0, 99], np.int64), 1, 2, 8).spans(
            next(i for i in range(13) if Permutation(13, 2)(i) == 12)
        )
    with pytest.raises(TypeError):
        JoinedEpoch(file, np.array([0, 30], np.int32), 1, 2, 8)
    with pytest.raises(ValueError, match="outputs must be"):
        good = JoinedEpoch(file, joined_starts(file, 1, 1), 1, 2, 8)
        outs = [np.zeros((1, 8), dtype) for dtype in (np.int64, np.int64, np.float32)]
        good.read(np.array([0]), *outs, np.zeros((1, 9), np.int32), 0)
    with pytest.raises(TypeError):
        good.read(np.array([0]), *outs, np.zeros((1, 8), np.int64), 0)
    with pytest.raises(IndexError, match="outside the epoch"):
        good.spans(good.num_samples)
    with pytest.raises(ValueError, match="a document, pointers 8"):
        Tokens(np.zeros(4, np.uint8), np.zeros(4, np.uint8), NO_BYTES, 4, NO_BYTES)


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i4", "<i8"])
def test_ids_of_every_width_are_read(dtype: str) -> None:
    """Up to the largest one; the first id beyond the vocabulary is refused, as are negative ones."""
    kind = np.iinfo(dtype)
    ids = [0, 1, kind.max // 2, kind.max - 1, kind.max, 7, 8]
    file = tokens_of([3, 4], np.array(ids, dtype))
    epoch = JoinedEpoch(file, joined_starts(file, 1, 1), 1, 2, 6)
    order = [token for at in reference.permutation(2, 1) for token in (ids[:3], ids[3:])[at]]
    for vocab_size in (0, kind.max + 1):
        inputs, labels, *_ = read(epoch, 6, [0], vocab_size)
        assert (inputs[0].tolist(), labels[0].tolist()) == (order[:-1], order[1:])
    with pytest.raises(IndexError, match=f"token id {kind.max} is outside the vocabulary of {kind.max}"):
        read(epoch, 6, [0], kind.max)
    if kind.min < 0:
        negative = tokens_of([3], np.array([1, kind.min, 2], dtype))
        epoch = JoinedEpoch(negative, joined_starts(negative, 1, 1), 1, 2, 6)
        with pytest.raises(IndexError, match=f"token id {kind.min} is outside"):
            read(epoch, 6, [0], kind.max)


def test_the_end_of_a_document_beyond_the_file_is_refused() -> None:
    """A piece that would fit at the beginning of the document, and lies beyond the file where it is."""
    file = tokens_of([10], np.arange(9, dtype=np.int32))
    epoch = JoinedEpoch(file, joined_starts(file, 1, 1), 1, 2, 3)
    inside = [number for number in range(3) if epoch.spans(number)[0][1] < 6]
    assert len(inside) == 2
    read(epoch, 3, inside)
    (beyond,) = set(range(3)) - set(inside)
    with pytest.raises(IndexError, match=r"outside the \.bin"):
        read(epoch, 3, [beyond])


OUT_OF_MEMORY = """
import resource, sys
import numpy as np
from cptron.data.kernels import Tokens, packed_starts
lengths = np.ones(1 << 18, "<i4")
lengths[:] = 2**31 - 1
none = np.zeros(0, np.uint8)
tokens = Tokens(lengths.view(np.uint8), np.zeros(8 << 18, np.uint8), none, 4, none)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), -1))
try:
    packed_starts(tokens, 1, 1, 2)
except MemoryError:
    sys.exit(7)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="needs a limit on memory, which the sanitizer does not stand",
)
def test_no_memory_on_a_thread_is_an_exception() -> None:
    """Documents whose pieces fit in no memory: the process lives on, whichever thread met them."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], timeout=240, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr


def test_pieces_as_long_as_a_sample_come_first() -> None:
    """Long documents among short ones, over several windows: the rows of the twin, row for row."""
    rng = np.random.default_rng(3)
    lengths = np.where(rng.random(2100) < 0.1, rng.integers(1, 90, 2100), rng.integers(1, 12, 2100)).tolist()
    file = tokens_of(lengths)
    epoch = PackedEpoch(file, packed_starts(file, 4, 9, 3), 4, 5, 9)
    rows = reference.best_fit(documents_of(lengths), 9, 4)
    assert epoch.num_samples == len(rows)
    for number, at in enumerate(reference.permutation(len(rows), 5)):
        assert [(d, offset, length - 1) for d, offset, length in epoch.spans(number)] == rows[at]
