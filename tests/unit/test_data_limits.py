"""`max_epochs`: what happens when a source has been seen often enough, and that a restart changes nothing of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from data_world import open_stream, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.data.ledger import Ledger

LIMITS = {"a": 1.5, "b": 2.0}
SHARES = {"a": 0.4, "b": 0.4, "c": 0.2}


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three corpora of 10, 13 and 25 samples."""
    directory = tmp_path_factory.mktemp("tokens")
    for name, tokens, first in (("a", 81, 0), ("b", 101, 10**4), ("c", 201, 10**5)):
        write_tokens(directory / name, [tokens // 3, tokens - tokens // 3], first=first)
    return {name: str(directory / name) for name in "abc"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.sampled_from(["redistribute", "warn"]))
def test_restarts_change_nothing(prefixes: dict[str, str], sizes: list[int], policy: str) -> None:
    """Sample for sample, whatever the batches and wherever a restart falls: also just at a limit."""
    options = {"max_epochs": LIMITS, "on_max_epochs": policy}
    whole = open_stream(prefixes, SHARES, **options)  # type: ignore[arg-type]
    expected = [whole.draw(1)[0] for _ in range(sum(sizes))]
    ledger, found = Ledger(), []
    for size in sizes:
        stream = open_stream(
            prefixes, SHARES, Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))), **options
        )  # type: ignore[arg-type]
        found += stream.draw(size)
        ledger = stream.ledger
    assert found == expected
    assert ledger == whole.ledger


def test_redistribute_keeps_the_limits_and_the_proportion_of_the_others(prefixes: dict[str, str]) -> None:
    """Each source gives its limit and no sample more; while two are left they keep their proportion."""
    stream = open_stream(prefixes, SHARES, max_epochs=LIMITS, on_max_epochs="redistribute")
    drawn = stream.draw(300)
    counts = Counter(draw.source for draw in drawn)
    assert (counts[0], counts[1], counts[2]) == (15, 26, 300 - 41)
    assert [note.split(";")[0] for note in stream.notes] == [
        "source a has reached max_epochs=1.5",
        "source b has reached max_epochs=2",
    ]
    last_of_a = max(place for place, draw in enumerate(drawn) if draw.source == 0)
    last_of_b = max(place for place, draw in enumerate(drawn) if draw.source == 1)
    between = Counter(draw.source for draw in drawn[last_of_a + 1 : last_of_b + 1])
    assert abs(between[1] - 2 * between[2]) <= 2
    assert stream.ledger.entries["c"].share == 1.0


def test_nothing_is_left(prefixes: dict[str, str]) -> None:
    """When every source has its limit the last whole batch is the end; what is entered does not move any more."""
    limits = {"a": 1.0, "b": 1.0, "c": 1.0}
    stream = open_stream(prefixes, SHARES, max_epochs=limits, on_max_epochs="redistribute")
    total = sum(source.samples_per_epoch for source in stream.sources)
    batches = 0
    while stream.draw(7):
        batches += 1
    assert batches == total // 7
    before = stream.ledger.to_dict()
    assert stream.draw(7) == [] and stream.ledger.to_dict() == before
    assert "no further global batch" in stream.notes[-1]
    assert len(stream.draw(total % 7)) == total % 7


@pytest.mark.parametrize("size", [1, 4, 9])
def test_stop_gives_whole_batches_within_the_limits(prefixes: dict[str, str], size: int) -> None:
    """The batch that would go beyond is not begun, and the next start stops at the same place."""
    stream = open_stream(prefixes, SHARES, max_epochs=LIMITS, on_max_epochs="stop")
    while stream.draw(size):
        assert stream.ledger.entries["a"].cursor <= 15
    free = open_stream(prefixes, SHARES)
    expected = -size
    while free.ledger.entries["a"].cursor <= 15 and free.ledger.entries["b"].cursor <= 26:
        expected += len(free.draw(size))
    assert sum(entry.cursor for entry in stream.ledger.entries.values()) == expected
    lowered = open_stream(prefixes, SHARES, stream.ledger, max_epochs={"a": 0.5}, on_max_epochs="stop")
    assert lowered.draw(12) == []
    again = open_stream(prefixes, SHARES, stream.ledger, max_epochs=LIMITS, on_max_epochs="stop")
    assert again.draw(size) == []
    raised = open_stream(
        prefixes, SHARES, stream.ledger, max_epochs={"a": 9.0, "b": 9.0}, on_max_epochs="stop"
    )
    assert len(raised.draw(size)) == size


def test_warn_says_it_once_and_goes_on(prefixes: dict[str, str]) -> None:
    """At the sample that goes beyond the limit, and never again."""
    stream = open_stream(prefixes, SHARES, max_epochs={"a": 1.5}, on_max_epochs="warn")
    for _ in range(40):
        stream.draw(5)
    assert stream.notes == ["source a begins to repeat beyond max_epochs=1.5"]
    assert stream.ledger.entries["a"].cursor > 15


def test_a_limit_that_is_raised_gives_the_share_back(prefixes: dict[str, str], tmp_path: Path) -> None:
    """The source goes on where it was."""
    stream = open_stream(prefixes, SHARES, max_epochs={"a": 1.0}, on_max_epochs="redistribute")
    stream.draw(100)
    assert stream.ledger.entries["a"].cursor == 10
    raised = open_stream(prefixes, SHARES, stream.ledger, max_epochs={"a": 2.0}, on_max_epochs="redistribute")
    cursors = [draw.cursor for draw in raised.draw(20) if draw.source == 0]
    assert cursors == list(range(10, 10 + len(cursors))) and len(cursors) in (7, 8, 9)


@pytest.mark.parametrize(("limit", "samples"), [(0.5, 5), (0.51, 6), (1.01, 11), (0.01, 1)])
def test_a_limit_within_a_sample_counts_the_whole_sample(
    prefixes: dict[str, str], limit: float, samples: int
) -> None:
    """Of the 10 samples of an epoch."""
    stream = open_stream(prefixes, SHARES, max_epochs={"a": limit}, on_max_epochs="redistribute")
    stream.draw(100)
    assert stream.ledger.entries["a"].cursor == samples
