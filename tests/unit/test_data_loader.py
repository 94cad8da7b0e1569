"""Reading ahead: order, errors and the account of what was handed out; ranks that do not read."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import SEQ, labels, open_stream, write_tokens

from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.prefetch import Prefetcher
from cptron.errors import DataError


@pytest.fixture
def prefixes(tmp_path: Path) -> dict[str, str]:
    """Two corpora."""
    write_tokens(tmp_path / "a", [30, 1, 50, 20])
    write_tokens(tmp_path / "b", [70], first=10**5)
    return {name: str(tmp_path / name) for name in "ab"}


def loader_of(prefixes: dict[str, str], ledger: Ledger, cut: Cut, **options: Any) -> TrainLoader:
    """Over both corpora."""
    return TrainLoader(open_stream(prefixes, {"a": 0.5, "b": 0.5}), ledger, cut, **options)


def test_ahead_or_not_is_the_same(prefixes: dict[str, str]) -> None:
    """Batches and ledger after every step, for any number of threads and steps ahead."""
    expected, ledgers = [], []
    for workers, ahead in ((1, 0), (1, 1), (3, 4)):
        ledger = Ledger()
        loader = loader_of(prefixes, ledger, Cut(6, 2), workers=workers, prefetch_steps=ahead)
        steps = []
        for _ in range(20):
            steps.append((labels(loader.next_step()), ledger.to_dict()))
            time.sleep(0.002)  # the thread gets ahead; the ledger must not
        loader.close()
        expected.append([step[0] for step in steps])
        ledgers.append([step[1] for step in steps])
    assert expected[0] == expected[1] == expected[2]
    assert ledgers[0] == ledgers[1] == ledgers[2]


def test_ranks_that_do_not_read_keep_the_same_account(prefixes: dict[str, str]) -> None:
    """They get shapes, sources and documents, and say that the tokens come from elsewhere."""
    ledgers = [Ledger(), Ledger()]
    readers = [
        loader_of(prefixes, ledger, Cut(8, 2, 1, 2, reads=reads, hands_on=True))
        for ledger, reads in zip(ledgers, (True, False), strict=True)
    ]
    for _ in range(5):
        reading, waiting = (reader.next_step() for reader in readers)
        for one, other in zip(reading, waiting, strict=True):
            assert one.on_first_tensor_rank and other.on_first_tensor_rank
            assert (one.source_B == other.source_B).all()
            assert one.tokens_BS.shape == other.tokens_BS.shape == (2, SEQ)
            assert one.labels_BS.any() and not other.labels_BS.any()
            assert (one.documents_BS == other.documents_BS).all(), "attention needs them on every rank"
        assert ledgers[0] == ledgers[1]
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_while_reading_ahead_is_raised_at_its_step(prefixes: dict[str, str], ahead: int) -> None:
    """Not lost in a thread, not before its step, and nothing of the broken step is in the account."""
    ledger = Ledger()
    stream = open_stream(prefixes, {"a": 0.5, "b": 0.5})
    source = stream.sources[1]
    whole = source.read

    def broken(cursors: np.ndarray, batch: Any) -> None:
        if cursors[0] >= 3:
            raise DataError("source b is damaged")
        whole(cursors, batch)

    source.read = broken  # type: ignore[method-assign]
    loader = TrainLoader(stream, ledger, Cut(2, 1), prefetch_steps=ahead)
    for _ in range(3):
        loader.next_step()
    before = ledger.to_dict()
    with pytest.raises(DataError, match="source b is damaged"):
        loader.next_step()
    assert ledger.to_dict() == before
    loader.close()


def test_closing_leaves_no_thread(prefixes: dict[str, str]) -> None:
    """Also while items are ready that nobody takes; and who never asks starts none."""
    before = set(threading.enumerate())
    loader_of(prefixes, Ledger(), Cut(2, 1), prefetch_steps=3)
    assert set(threading.enumerate()) <= before
    loader = loader_of(prefixes, Ledger(), Cut(2, 1), workers=2, prefetch_steps=3)
    loader.next_step()
    time.sleep(0.05)
    loader.close()
    deadline = time.monotonic() + 60
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_the_end_of_the_data_is_an_empty_step(prefixes: dict[str, str]) -> None:
    """With the reason, read ahead or not, and again when asked again."""
    limits = {"max_epochs": {"a": 1.0, "b": 1.0}, "on_max_epochs": "stop"}
    for ahead in (0, 2):
        stream = open_stream(prefixes, {"a": 0.5, "b": 0.5}, **limits)  # type: ignore[arg-type]
        loader = TrainLoader(stream, Ledger(), Cut(4, 4), prefetch_steps=ahead)
        count = 0
        while loader.next_step():
            count += 1
        assert count == 4 and "no further global batch" in loader.notes[0]
        assert loader.next_step() == []
        loader.close()


def test_arrays_come_from_the_allocator(prefixes: dict[str, str]) -> None:
    """Whatever they held before: page-locked memory is used again."""

    def dirty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.full(shape, 99, dtype)

    plain = loader_of(prefixes, Ledger(), Cut(4, 4))
    used = loader_of(prefixes, Ledger(), Cut(4, 4), allocate=dirty)
    for _ in range(30):
        for one, other in zip(plain.next_step(), used.next_step(), strict=True):
            for field in ("tokens_BS", "labels_BS", "loss_mask_BS", "documents_BS"):
                assert (getattr(one, field) == getattr(other, field)).all()


def test_prefetcher_makes_no_more_than_it_may() -> None:
    """At most `depth` items wait, and one is in the making."""
    made: list[int] = []

    def produce() -> int:
        made.append(len(made))
        return made[-1]

    prefetcher = Prefetcher(produce, 3)
    assert prefetcher.next() == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 3 + 1
    assert [prefetcher.next() for _ in range(10)] == list(range(1, 11))
    prefetcher.close()


def test_prefetcher_keeps_its_error() -> None:
    """Who asks again gets it again, and does not wait for a thread that is gone."""
    items = iter([1])
    prefetcher = Prefetcher(lambda: next(items), 2)
    assert prefetcher.next() == 1
    raised = []
    for _ in range(2):
        with pytest.raises(StopIteration) as caught:
            prefetcher.next()
        raised.append(caught.value)
    assert raised[0] is raised[1]
    prefetcher.close()
