"""The blend: within one sample of every share at every prefix, exactly Tijdeman's, however it is drawn."""

from __future__ import annotations

from pathlib import Path

import kernels_reference as reference
import numpy as np
import pytest
from data_world import open_stream, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.data import kernels
from cptron.data.blend import MOST_SOURCES, WEIGHT_SUM, Blend, integer_weights
from cptron.data.ledger import Entry, Ledger
from cptron.errors import ConfigError

WEIGHTS = st.lists(st.integers(1, 12) | st.integers(1, 2**40), min_size=1, max_size=9)
SHARES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=300)


def deviation(weights: list[int], drawn: np.ndarray) -> float:
    """Furthest that any source is from its share after any prefix."""
    places = np.arange(1, len(drawn) + 1)
    shares = np.array(weights, np.float64) / sum(weights)
    return max(
        float(np.abs(np.cumsum(drawn == source) - places * share).max())
        for source, share in enumerate(shares)
    )


@settings(max_examples=150, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_draws_are_those_of_exact_fractions(weights: list[int], pieces: list[int]) -> None:
    """Whatever the pieces they are drawn in, and started anew after each piece."""
    expected, counts = reference.blend(weights, [0] * len(weights), sum(pieces))
    at_once = kernels.Blend(weights, [0] * len(weights))
    assert at_once.draw(sum(pieces))[0].tolist() == expected
    one, found, numbers = kernels.Blend(weights, [0] * len(weights)), [], []
    for piece in pieces:
        sources, of_source = one.draw(piece)
        found += sources.tolist()
        numbers += of_source.tolist()
        one = kernels.Blend(weights, one.counts)
    assert found == expected
    assert list(one.counts) == counts
    assert numbers == [expected[:place].count(source) for place, source in enumerate(expected)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_sources", [2, 3, 7, 30, 128, 1000])
def test_within_one_sample_at_every_prefix(num_sources: int, seed: int) -> None:
    """Tijdeman's bound, 1 - 1/(2k - 2), for weights of every kind."""
    rng = np.random.default_rng(seed)
    kinds = (rng.random(num_sources), rng.pareto(0.5, num_sources) + 1e-9, np.ones(num_sources))
    weights = integer_weights(list(kinds[seed % 3] + (seed > 2) * (np.arange(num_sources) == 0) * 50))
    drawn = kernels.Blend(weights, [0] * num_sources).draw(30_000)[0]
    bound = 1 - 1 / (2 * num_sources - 2)
    assert deviation(weights, drawn) <= bound + 1e-6  # 1e-6: this test's own sums are floats


def test_bound_is_reached_far_from_the_beginning() -> None:
    """Going on from counts of 10^13 samples keeps within one of the share; nothing overflows."""
    weights = integer_weights([1e-9, 1.0, 0.3, 0.123])
    total = 10**13
    counts = [weight * total // WEIGHT_SUM for weight in weights]
    counts[1] += total - sum(counts)
    blend = kernels.Blend(weights, counts)
    drawn = blend.draw(50_000)[0]
    for source, weight in enumerate(weights):
        exact = (total + 50_000) * weight / WEIGHT_SUM
        assert abs(blend.counts[source] - exact) < 1.01
    assert set(drawn.tolist()) == {1, 2, 3}


def test_extreme_and_equal_shares() -> None:
    """1e-9 beside 1: nothing of it for long, then one within a sample of its time; equal shares take turns."""
    weights = integer_weights([1e-9, 1.0])
    assert not (kernels.Blend(weights, [0, 0]).draw(4_000_000)[0] == 0).any()
    before = 499_000_000
    rare = np.flatnonzero(kernels.Blend(weights, [0, before]).draw(2_000_000)[0] == 0)
    assert len(rare) == 1 and abs(before + rare[0] - 5 * 10**8) < 10**6
    for k in (2, 5, 64):
        turns = kernels.Blend([1] * k, [0] * k).draw(10 * k)[0].reshape(10, k)
        assert all(sorted(turn) == list(range(k)) for turn in turns.tolist())
    assert kernels.Blend([5], [0]).draw(4)[0].tolist() == [0, 0, 0, 0]


@settings(max_examples=200, deadline=None)
@given(SHARES)
def test_integer_weights_keep_the_proportion(shares: list[float]) -> None:
    """They sum to 2^48 exactly, and each is within one of its exact value, unless that is below one."""
    weights = integer_weights(shares)
    assert sum(weights) == WEIGHT_SUM and min(weights) >= 1
    raised = sum(share / sum(shares) * WEIGHT_SUM < 1 for share in shares)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(weight - share / sum(shares) * WEIGHT_SUM) <= 1.1 + raised


@pytest.mark.parametrize(
    "shares", [[], [0.0], [1.0, -0.5], [float("nan"), 1.0], [float("inf")], [1e308, 1e308]]
)
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    """A source that is never drawn is left out, not given zero; a sum that overflows would make every share 0."""
    with pytest.raises(ConfigError, match="positive with a finite sum"):
        Blend(shares)


def test_too_many_sources_and_wrong_arguments() -> None:
    """The sums of the kernel fit for 16,384 sources and no more."""
    with pytest.raises(ConfigError, match="at most 16384"):
        Blend([1.0] * (MOST_SOURCES + 1))
    kernels.Blend(integer_weights([1.0] * MOST_SOURCES), [0] * MOST_SOURCES).draw(100)
    for weights, counts in (([0, 1], [0, 0]), ([2**49], [0]), ([1, 1], [0]), ([1, 1], [0, -1]), ([], [])):
        with pytest.raises(ValueError, match="blend"):
            kernels.Blend(weights, counts)
    with pytest.raises(ValueError, match="negative"):
        kernels.Blend([1, 1], [0, 0]).draw(-1)


def test_new_shares_count_every_source_anew() -> None:
    """Also one whose own share stays."""
    ledger = Ledger({name: Entry("x", 0.0) for name in "abc"})
    ledger.set_shares({"a": 0.5, "b": 0.3, "c": 0.2})
    for entry in ledger.entries.values():
        entry.advance(10, 80, 2, 4.0)
    ledger.set_shares({"c": 0.2, "b": 0.3, "a": 0.5})
    assert [entry.since_mix for entry in ledger.entries.values()] == [10, 10, 10]
    ledger.set_shares({"a": 0.5, "b": 0.2, "c": 0.3})
    assert [entry.since_mix for entry in ledger.entries.values()] == [0, 0, 0]
    assert ledger.entries["a"] == Entry("x", 0.5, cursor=10, since_mix=0, tokens=80, documents=2, epochs=2.5)


def test_the_order_of_the_configuration_does_not_count(tmp_path: Path) -> None:
    """Equal shares, where every turn is a tie: sources are taken by name."""
    prefixes = {name: str(tmp_path / name) for name in "abc"}
    for number, prefix in enumerate(prefixes.values()):
        write_tokens(Path(prefix), [100], first=1000 * number)
    drawn = []
    for names in ("abc", "cba", "bca"):
        stream = open_stream(prefixes, dict.fromkeys(names, 1.0))
        drawn.append([(stream.sources[draw.source].name, draw.cursor) for draw in stream.draw(50)])
    assert drawn[0] == drawn[1] == drawn[2]
