"""Floors: whatever is proposed, the shares keep them; and what keeps them is left alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from data_world import SEQ, write_tokens
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cptron.data.floors import Floors, floored, is_usable
from cptron.data.ledger import Ledger
from cptron.data.mix import Mix
from cptron.data.source import TokenSource
from cptron.data.stages import Stage
from cptron.data.stream import SampleStream
from cptron.errors import ConfigError

ANY = st.floats(allow_nan=True, allow_infinity=True, width=64) | st.sampled_from(
    [0.0, -1.0, math.nan, math.inf, 1e-300, 1e300, 1.0]
)
NAMES = ("a", "b", "r", "s")
FLOORS = st.tuples(
    st.floats(0, 0.6), st.lists(st.floats(0, 0.09), min_size=4, max_size=4), st.booleans()
).map(
    lambda drawn: Floors(
        frozenset("rs" if drawn[2] else "r"),
        drawn[0],
        {name: least for name, least in zip(NAMES, drawn[1], strict=True) if least},
    )
)


def assert_kept(shares: dict[str, float], floors: Floors) -> None:
    """The invariant, in plain words."""
    assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-9)
    assert all(share >= floors.min_share.get(name, 0) - 1e-9 for name, share in shares.items())
    assert sum(shares.get(name, 0) for name in floors.replay) >= floors.replay_floor - 1e-9


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=4, max_size=4).filter(is_usable), FLOORS)
def test_any_shares_keep_any_floors(values: list[float], floors: Floors) -> None:
    """And those that keep them already are only normalised; twice is once."""
    proposed = dict(zip(NAMES, values, strict=True))
    shares = floored(proposed, floors)
    assert_kept(shares, floors)
    total = math.fsum(values)
    plain = {name: value / total for name, value in proposed.items()}
    enough = sum(plain[name] for name in floors.replay) >= floors.replay_floor
    if enough and all(plain[name] >= floors.min_share.get(name, 0) for name in NAMES):
        assert shares == plain
    assert floored(shares, floors) == pytest.approx(shares, abs=1e-9)


def test_the_nearest_shares_are_taken() -> None:
    """Within a group the proportions stay, the other group makes room."""
    floors = Floors(frozenset("rs"), 0.25)
    assert floored({"a": 6.0, "b": 3.0, "r": 0.75, "s": 0.25}, floors) == pytest.approx(
        {"a": 0.5, "b": 0.25, "r": 0.1875, "s": 0.0625}
    )
    least = Floors(frozenset("r"), 0.25, {"b": 0.1})
    assert floored({"a": 1.0, "b": 0.0, "r": 0.0}, least) == pytest.approx({"a": 0.65, "b": 0.1, "r": 0.25})
    with pytest.raises(ConfigError, match=r"data\.replay_floor=0\.25"):
        floored({"a": 1.0}, floors)


def test_what_is_usable() -> None:
    """Finite, from 0, and not all 0."""
    assert is_usable([0.0, 1.0])
    for values in ([math.nan, 1.0], [math.inf], [-1e-9, 1.0], [0.0, 0.0], [1e308, 1e308], []):
        assert not is_usable(values)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[TokenSource]:
    """Two to learn and two for replay."""
    directory: Path = tmp_path_factory.mktemp("tokens")
    for number, name in enumerate(NAMES):
        write_tokens(directory / name, [30, 50 + number, 7], first=1000 * number)
    return [TokenSource(name, str(directory / name), SEQ, seed=7) for name in NAMES]


@example(
    factors=[0.0] * 4, floors=Floors(frozenset("r"), 0.34375), limit=1.0
)  # used up with the end of a batch
@settings(max_examples=40, deadline=None)
@given(factors=st.lists(ANY, min_size=4, max_size=4), floors=FLOORS, limit=st.sampled_from([0.0, 1.0]))
def test_a_stream_keeps_them_under_any_factors(
    sources: list[TokenSource], factors: list[float], floors: Floors, limit: float
) -> None:
    """Also of NaN and infinity, in every stage, and when sources reach their limits: the run ends rather than that
    replay falls below its floor."""
    stages = (Stage((0.3, 0.1, 0.3, 0.3), 0, 8, until_tokens=200), Stage((0.2, 0.2, 0.6, 0.0), 0, 8))
    mix = Mix((1.0,) * 4, (0.0, 0.0, limit, limit), "redistribute", stages, floors, tuple(factors))
    stream = SampleStream(sources, mix, Ledger())
    for _ in range(20):
        if not stream.draw(8):
            assert floors.replay_floor and "replay" in stream.notes[-1]
            return
        shares = {name: entry.share for name, entry in stream.ledger.entries.items() if entry.share}
        if not shares:  # the last batch took what there was to keep replay's floor: nothing comes after it
            assert not stream.draw(8) and "replay" in stream.notes[-1]
            return
        assert sum(shares.get(name, 0) for name in floors.replay) >= floors.replay_floor - 1e-9
        # a source whose turn is over has no floor any more
        assert all(share >= floors.min_share.get(name, 0) - 1e-9 for name, share in shares.items())


def test_a_run_with_more_replay_ends_where_every_source_is_used_up(sources: list[TokenSource]) -> None:
    """The monitor's factor has nothing to raise then."""
    role = (False, False, True, True)
    mix = Mix((1.0,) * 4, (1.0,) * 4, "redistribute", is_replay=role, replay_factor=2.0)
    stream = SampleStream(sources, mix, Ledger())
    drawn = 0
    while batch := stream.draw(1):
        drawn += len(batch)
    assert drawn == sum(source.samples_per_epoch for source in sources)
    assert "leave no further global batch" in stream.notes[-1]
