"""The compiled index builders against plain Python, against megatron-core's own, and against their promises."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import kernels_reference as reference
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cptron.data import kernels

KEYS = st.integers(0, 2**64 - 1)
WEIGHTS = st.lists(st.integers(1, 2**32), min_size=1, max_size=40)


def sample_index(lengths: list[int], order: list[int], seq_length: int) -> list[tuple[int, ...]]:
    """The kernel's rows as tuples."""
    rows = kernels.build_sample_index(np.array(lengths, np.int32), np.array(order, np.int64), seq_length)
    return [tuple(row) for row in rows.tolist()]


def draw(weights: list[int], counts: list[int], n: int) -> tuple[list[int], list[int]]:
    """The kernel's draws and the counts after them."""
    state = np.array(counts, np.int64)
    chosen = kernels.draw_blend(np.array(weights, np.uint64), state, n)
    return chosen.tolist(), state.tolist()


@settings(deadline=None)
@given(st.integers(0, 300), KEYS)
@example(0, 0)
@example(1, 5)
@example(300, 2**64 - 1)
def test_shuffle_equals_its_twin(n: int, key: int) -> None:
    """Draw for draw, so that every platform has the same order."""
    assert kernels.shuffle(n, key).tolist() == reference.shuffle(n, key)


@settings(deadline=None)
@given(st.integers(0, 5000), KEYS)
def test_shuffle_is_a_permutation(n: int, key: int) -> None:
    """Nothing lost, nothing twice."""
    assert np.array_equal(np.sort(kernels.shuffle(n, key)), np.arange(n))


@settings(deadline=None)
@given(KEYS, KEYS)
def test_other_keys_give_other_orders(one: int, other: int) -> None:
    """50 things have more orders than there are keys; neighbouring keys must not give neighbouring orders."""
    orders = [kernels.shuffle(50, key % 2**64).tolist() for key in (one, other, one + 1)]
    assert (orders[0] == orders[1]) == (one == other)
    assert sum(a == b for a, b in zip(orders[0], orders[2], strict=True)) < 25


def test_shuffle_is_uniform() -> None:
    """All 24 orders of 4 things over 24,000 keys, and every place of 10 things: chi-square below its 99.99 % point."""
    counts = Counter(tuple(kernels.shuffle(4, key).tolist()) for key in range(24_000))
    assert len(counts) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 56  # 23 degrees of freedom
    places = np.zeros((10, 10))
    for key in range(10_000):
        places[np.arange(10), kernels.shuffle(10, key)] += 1
    assert ((places - 1000) ** 2 / 1000).sum() < 134  # 81 degrees of freedom


def test_shuffle_refuses_a_negative_count() -> None:
    """Not an allocation of 2^64 bytes."""
    with pytest.raises(ValueError, match="must not be negative"):
        kernels.shuffle(-1, 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 40), st.randoms(use_true_random=False))
@example([0, 0], 3, None)
def test_sample_index_equals_its_twin(lengths: list[int], seq_length: int, random: Any) -> None:
    """Also with empty documents, and with documents longer than many samples."""
    order = list(range(len(lengths)))
    if random:
        random.shuffle(order)
    assert sample_index(lengths, order, seq_length) == reference.build_sample_index(
        lengths, order, seq_length
    )


@pytest.fixture(scope="module")
def megatron_helpers() -> Any:
    """megatron-core's compiled helpers, loaded without megatron-core, whose import takes seconds."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None and spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0], "datasets").glob("helpers_cpp.*.so")
    loader = importlib.machinery.ExtensionFileLoader("helpers_cpp", str(path))
    helpers = importlib.util.module_from_spec(importlib.util.spec_from_loader("helpers_cpp", loader))
    loader.exec_module(helpers)
    return helpers


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 50), KEYS)
def test_sample_index_equals_megatron_cores(
    megatron_helpers: Any, lengths: list[int], seq_length: int, key: int
) -> None:
    """One epoch of `build_sample_idx` over documents that have tokens; it needs at least one sample."""
    assume(sum(lengths) > seq_length)
    sizes, order = np.array(lengths, np.int32), kernels.shuffle(len(lengths), key)
    theirs = megatron_helpers.build_sample_idx_int32(
        sizes, order.astype(np.int32), seq_length, 1, sum(lengths), True, 1
    )
    assert kernels.build_sample_index(sizes, order, seq_length).tolist() == np.asarray(theirs).tolist()


def test_sample_index_counts_beyond_32_bits() -> None:
    """Three documents of 2^31 - 1 tokens: 6.4 billion tokens, by arithmetic alone."""
    length, seq_length = 2**31 - 1, 2**20 - 3
    rows = sample_index([length] * 3, [2, 0, 1], seq_length)
    assert len(rows) == (3 * length - 1) // seq_length + 1
    assert rows == [divmod(i * seq_length, length) for i in range(len(rows))]


@pytest.mark.parametrize(
    ("order", "seq_length", "error"), [([1], 4, IndexError), ([-1], 4, IndexError), ([0], 0, ValueError)]
)
def test_sample_index_refuses_nonsense(order: list[int], seq_length: int, error: type[Exception]) -> None:
    """A document that does not exist is not read from beyond the array."""
    with pytest.raises(error):
        sample_index([9], order, seq_length)


@pytest.mark.parametrize(
    ("lengths", "order", "error"),
    [
        (np.array([2**32 + 5], np.int64), np.array([0], np.int64), TypeError),
        (np.array([5.9]), np.array([0], np.int64), TypeError),
        (np.array([9], np.int32), np.array([0.7]), TypeError),
        (np.array([9, -5], np.int32), np.array([0, 1], np.int64), ValueError),
    ],
)
def test_sample_index_refuses_what_it_would_misread(
    lengths: np.ndarray, order: np.ndarray, error: type[Exception]
) -> None:
    """A length beyond 32 bits is not wrapped, a fraction is not cut off, and no document ends before it begins."""
    with pytest.raises(error):
        kernels.build_sample_index(lengths, order, 2)


def test_blend_refuses_fractional_weights() -> None:
    """Shares below 1 would all be cut off to a weight of 0."""
    with pytest.raises(TypeError):
        kernels.draw_blend(np.array([0.9, 0.1]), np.zeros(2, np.int64), 5)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 10**12), st.integers(0, 80), st.integers(0, 80))
@example([2**32] * 40, 10**12, 80, 80)
@example([1, 2**32], 10**12, 80, 80)
def test_blend_equals_its_twin_and_resumes(weights: list[int], drawn: int, first: int, second: int) -> None:
    """From any counts, and two calls give what one gives: the counts are the whole state."""
    start = [weight * drawn // sum(weights) for weight in weights]
    expected = reference.draw_blend(weights, start, first + second)
    begun, between = draw(weights, start, first)
    continued, after = draw(weights, between, second)
    assert (begun + continued, after) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20), st.data())
def test_blend_equals_its_twin_from_counts_far_from_the_shares(
    counts: list[int], data: st.DataObject
) -> None:
    """Products of 2^32 and 10^12 leave 64 bits; the decision must not."""
    sizes = st.lists(st.integers(1, 2**32), min_size=len(counts), max_size=len(counts))
    weights = data.draw(sizes)
    assert draw(weights, counts, 50) == reference.draw_blend(weights, counts, 50)


@settings(deadline=None)
@given(WEIGHTS)
@example([1] * 40)
@example([2**32, *[1] * 39])
@example([2**32 // k for k in range(1, 41)])
def test_no_source_strays_from_its_share(weights: list[int]) -> None:
    """At every prefix no source is a whole sample ahead, nor further behind than the K-th harmonic number.

    The latter is the bound of the cup game (K cups, one unit poured a round, the fullest emptied by one).
    """
    chosen, _ = draw(weights, [0] * len(weights), 1500)
    counts = np.cumsum(np.array(chosen)[:, None] == np.arange(len(weights)), axis=0)
    behind = np.arange(1, 1501)[:, None] * (np.array(weights) / sum(weights)) - counts
    assert behind.min() > -1
    assert behind.max() < sum(1 / k for k in range(1, len(weights) + 1)) + 1e-6


@pytest.mark.parametrize("counts", [np.zeros(2, np.int32), np.zeros(3, np.int64)])
def test_blend_refuses_counts_it_could_not_advance(counts: np.ndarray) -> None:
    """A converted copy would be advanced in vain."""
    with pytest.raises((TypeError, ValueError)):
        kernels.draw_blend(np.ones(2, np.uint64), counts, 1)


def test_blend_refuses_a_negative_number() -> None:
    """As shuffle does."""
    with pytest.raises(ValueError, match="negative"):
        draw([1, 1], [0, 0], -1)
