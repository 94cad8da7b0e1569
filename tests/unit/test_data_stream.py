"""The stream of training samples: nothing lost, nothing repeated, whatever the ranks, restarts and shares."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import SEQ, Rows, labels, open_stream, sample_labels, take_step, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.source import TokenSource
from cptron.data.valid import ValidSet
from cptron.errors import CheckpointError, DataError

SHARES = st.dictionaries(st.sampled_from("ab"), st.sampled_from([0.05, 0.3, 0.7, 1.0]), min_size=1)
CUTS = [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2), (4, 3), (1, 12), (6, 2)]


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two corpora with unlike documents; their tokens do not overlap."""
    directory = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(3)
    write_tokens(directory / "a", rng.integers(1, 40, 30).tolist())
    write_tokens(directory / "b", [1, 100, 3, 1, 57], first=10**5)
    return {name: str(directory / name) for name in ("a", "b")}


def through_json(ledger: Ledger) -> Ledger:
    """As a checkpoint keeps it."""
    return Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))


@settings(max_examples=16, deadline=None)
@given(st.sampled_from(CUTS), st.sampled_from([0, 3]))
def test_global_batches_do_not_depend_on_ranks(
    prefixes: dict[str, str], cut: tuple[int, int], prefetch_steps: int
) -> None:
    """The same samples in each global batch of 12, and the same ledger on every rank after each."""
    dp_size, micro = cut

    def run(dp: int, mbs: int, ahead: int) -> tuple[list[Rows], list[list[dict[str, Any]]]]:
        batches: list[Rows] = [[] for _ in range(9)]
        ledgers: list[list[dict[str, Any]]] = [[] for _ in range(9)]
        for rank in range(dp):
            ledger = Ledger()
            stream = open_stream(prefixes, {"a": 0.7, "b": 0.3})
            loader = TrainLoader(stream, ledger, Cut(12, mbs, rank, dp), prefetch_steps=ahead)
            for step in range(9):
                batches[step] += labels(loader.next_step())
                ledgers[step].append(ledger.to_dict())
            loader.close()
        return [sorted(batch) for batch in batches], ledgers

    expected, one = run(1, 1, 0)
    found, many = run(dp_size, micro, prefetch_steps)
    assert found == expected
    assert all(ledger == step[0] for step, others in zip(one, many, strict=True) for ledger in others)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 4, 5, 12]), min_size=1, max_size=12))
def test_batch_size_and_restarts_leave_the_stream_alone(prefixes: dict[str, str], sizes: list[int]) -> None:
    """The same samples in the same order, whatever the global batches are and however often the run restarts."""
    whole = open_stream(prefixes, {"a": 0.5, "b": 0.5})
    expected = [whole.draw(1)[0] for _ in range(sum(sizes))]
    ledger, found = Ledger(), []
    for size in sizes:
        stream = open_stream(prefixes, {"a": 0.5, "b": 0.5}, through_json(ledger))
        found += stream.draw(size)
        ledger = stream.ledger
    assert found == expected
    assert ledger == whole.ledger


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SHARES, st.sampled_from([1, 2, 4]), st.integers(0, 4)), min_size=1, max_size=6))
def test_any_history_of_shares_ranks_and_restarts(
    prefixes: dict[str, str], history: list[tuple[dict[str, float], int, int]]
) -> None:
    """Sources come, go and come back, with a restart at every change: what was drawn of a source is always its
    first `cursor` samples, each once, and its account says how much that was."""
    saved = Ledger()
    drawn: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in prefixes}
    for shares, dp_size, steps in history:
        ledgers = []
        for rank in range(dp_size):
            ledger = through_json(saved)
            stream = open_stream(prefixes, shares, ledger)
            loader = TrainLoader(stream, ledger, Cut(8, 8 // dp_size // (steps % 2 + 1), rank, dp_size))
            for batch in itertools.chain.from_iterable(loader.next_step() for _ in range(steps)):
                for row, source in zip(labels([batch]), batch.source_B, strict=True):
                    drawn[stream.sources[source].name][row] += 1
            loader.close()
            ledgers.append(ledger)
        assert all(ledger == ledgers[0] for ledger in ledgers)
        saved = ledgers[0]
        assert {name for name, entry in saved.entries.items() if entry.share} == set(shares)
    for name, entry in saved.entries.items():
        source = TokenSource(name, prefixes[name], SEQ, seed=7)
        rows = [sample_labels(source, cursor) for cursor in range(entry.cursor)]
        assert drawn[name] == Counter(rows)
        assert entry.tokens == sum(map(len, rows))
        assert entry.documents == source.count(np.arange(entry.cursor))[0]
        assert entry.epochs == entry.cursor / source.samples_per_epoch
    assert sum(rows.total() for rows in drawn.values()) == 8 * sum(steps for _, _, steps in history)


def test_shares_hold_from_the_change_on(prefixes: dict[str, str]) -> None:
    """What was drawn before a change is not made up for; the same shares in other words are no change."""
    ledger = Ledger()
    for shares, expected in (({"a": 0.5, "b": 0.5}, 50), ({"a": 9, "b": 1}, 90), ({"b": 0.1, "a": 0.9}, 90)):
        before = ledger.entries["a"].cursor if ledger.entries else 0
        stream = open_stream(prefixes, shares, ledger)
        stream.draw(100)
        ledger = stream.ledger
        assert abs(ledger.entries["a"].cursor - before - expected) <= 1
    assert ledger.entries["a"].since_mix + ledger.entries["b"].since_mix == 200


def test_shares_are_of_tokens(tmp_path: Path) -> None:
    """Half of the tokens from a source whose samples are half empty: twice as many samples."""
    write_tokens(tmp_path / "short", [SEQ // 2 + 1] * 40)
    write_tokens(tmp_path / "full", [100] * 40, first=10**5)
    prefixes = {name: str(tmp_path / name) for name in ("short", "full")}
    stream = open_stream(prefixes, {"short": 0.5, "full": 0.5}, packing="best_fit")
    stream.draw(600)
    short, full = (stream.ledger.entries[name] for name in ("short", "full"))
    assert abs(short.tokens - full.tokens) < 2 * SEQ * 2


def test_the_order_does_not_depend_on_how_long_the_run_is(prefixes: dict[str, str]) -> None:
    """Nothing is asked about the end: a longer run begins with the shorter one."""
    short, long = open_stream(prefixes, {"a": 0.7, "b": 0.3}), open_stream(prefixes, {"a": 0.7, "b": 0.3})
    assert long.draw(400)[:50] == short.draw(50)


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"entries": []},
        {"entries": {"a": {"cursor": 1}}},
        {"entries": {"a": 3}},
        {"entries": {"a": {"identity": "x", "share": 1.0, "cursor": 1.5}}},
        {"entries": {"a": {"identity": "x", "share": 1.0, "cursor": -1}}},
        {"entries": {"a": {"identity": "x", "share": 1.0, "documents": True}}},
        *(
            {"entries": {"a": {"identity": "x", "share": 1.0, "cursor": 9} | changed}}
            for changed in (
                {"since_mix": 10},
                {"since_mix": -1},
                {"since_mix": 1.0},
                {"tokens": "1"},
                {"tokens": 1.0},
                {"share": math.nan},
                {"share": 1.01},
                {"share": -0.1},
                {"share": True},
                {"identity": 3},
                {"epochs": math.inf},
                {"epochs": "1"},
            )
        ),
    ],
)
def test_damaged_ledger_is_refused(saved: dict[str, Any]) -> None:
    """A position that cannot be read must not become zero."""
    with pytest.raises(CheckpointError, match="ledger is damaged"):
        Ledger.from_dict(saved)


def test_changed_content_is_refused(prefixes: dict[str, str], tmp_path: Path) -> None:
    """The cursor counts in one content only: other tokens, or other borders over the same tokens."""
    ledger = open_stream(prefixes, {"a": 1.0}).ledger
    write_tokens(tmp_path / "a", [50, 50], first=3)
    with pytest.raises(DataError, match="source a has changed"):
        open_stream({"a": str(tmp_path / "a")}, {"a": 1.0}, ledger)
    for name, lengths in (("one", [7] * 30), ("other", [70, 70, 70])):
        write_tokens(tmp_path / name, lengths)
    one, other = ({"s": str(tmp_path / name)} for name in ("one", "other"))
    assert Path(f"{one['s']}.bin").read_bytes() == Path(f"{other['s']}.bin").read_bytes()
    ledger = open_stream(one, {"s": 1.0}).ledger
    open_stream(one, {"s": 1.0}, ledger)
    with pytest.raises(DataError, match="source s has changed"):
        open_stream(other, {"s": 1.0}, ledger)


def test_one_step_at_a_time_equals_one_loader(prefixes: dict[str, str]) -> None:
    """A loader for each step, as after a crash each time, against one that goes on."""
    ledger = Ledger()
    loader = TrainLoader(open_stream(prefixes, {"a": 0.5, "b": 0.5}), ledger, Cut(4, 1), prefetch_steps=2)
    expected = [labels(loader.next_step()) for _ in range(12)]
    loader.close()
    ledger, found = Ledger(), []
    for _ in range(12):
        found.append(take_step(open_stream(prefixes, {"a": 0.5, "b": 0.5}, ledger), ledger, Cut(4, 1)))
        ledger = through_json(ledger)
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 300), st.integers(1, 70))
def test_validation_predicts_every_token_once(
    prefixes: dict[str, str], dp_size: int, micro: int, max_tokens: int, seq_length: int
) -> None:
    """Over all ranks, in order, the counted labels are the stream from its second token on."""
    sets = [
        ValidSet("b", prefixes["b"], seq_length, max_tokens, micro, rank, dp_size) for rank in range(dp_size)
    ]
    ranks = [list(valid) for valid in sets]
    assert len({len(batches) for batches in ranks}) == 1
    found, tokens = [], []
    for round_of_batches in zip(*ranks, strict=True):
        for batch in round_of_batches:
            found += batch.labels_BS[batch.loss_mask_BS == 1].tolist()
            tokens += batch.tokens_BS[batch.loss_mask_BS == 1].tolist()
    stream = np.arange(10**5, 10**5 + 162).tolist()
    count = min(max_tokens, 161) if max_tokens else 161
    assert found == stream[1 : 1 + count]
    assert tokens == stream[:count]
    assert sets[0].num_predicted_tokens == count


def test_an_empty_validation_set_is_refused(tmp_path: Path) -> None:
    """One token leaves nothing to predict."""
    write_tokens(tmp_path / "one", [1])
    with pytest.raises(DataError, match=r"validation set v .* is empty"):
        ValidSet("v", str(tmp_path / "one"), SEQ, 0, 1, 0, 1)
