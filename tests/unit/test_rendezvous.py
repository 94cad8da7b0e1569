"""Ranks of one start find each other in a store that the agent keeps, whatever earlier starts left in it."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cptron import testing
from cptron.errors import LaunchError
from cptron.runtime import rendezvous
from cptron.runtime.dist import init_process_group
from cptron.runtime.launcher import Ranks
from cptron.runtime.rendezvous import fresh_store

WORLD_SIZE = 3


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The agent's store, where the ranks look for it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))

    def connected(host: str, port: int, **how: Any) -> TCPStore:
        """However little time the ranks have for each other, they have it to reach the store."""
        return TCPStore(host, port, **{**how, "timeout": datetime.timedelta(seconds=60)})

    monkeypatch.setattr(rendezvous, "TCPStore", connected)
    return store


def start(ranks: Sequence[int], timeout_s: float) -> dict[int, str]:
    """Start ranks at once; what each of them got: the word that rank 0 wrote for it, or its error."""
    found: dict[int, str] = {}

    def join(rank: int) -> None:
        try:
            timeout = datetime.timedelta(seconds=timeout_s)
            store = fresh_store(Ranks(rank, WORLD_SIZE, rank, WORLD_SIZE, "torchrun"), timeout)
        except LaunchError as error:
            found[rank] = str(error)
            return
        if rank == 0:
            assert not store.check(["word"]), "an earlier start wrote here"
            store.set("word", str(id(found)))
        found[rank] = store.get("word").decode()

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("earlier", [(0, 1, 2), (0, 1), (0,), (1, 2), (2,)])
def test_every_start_has_its_own_part(earlier: tuple[int, ...], agent: TCPStore) -> None:
    """Also after one that was killed before all of its ranks had joined, and when rank 0 comes last."""
    found = start(earlier, 60.0 if len(earlier) == WORLD_SIZE else 0.3)
    assert list(found) and (
        len(earlier) == WORLD_SIZE or all("ranks came" in t or "no rank 0" in t for t in found.values())
    )
    for order in ((0, 1, 2), (2, 1, 0)):
        words = start(order, 60.0)
        assert len(words) == WORLD_SIZE and len(set(words.values())) == 1 and words[0].isdigit()


def test_a_port_that_another_program_has_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the user's terms, not torch's traceback."""
    with socket.create_server(("", 0)) as other:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(
            LaunchError, match=r"did not meet the others at 127\.0\.0\.1:\d+ .*MASTER_PORT there"
        ):
            init_process_group("gloo", Ranks(0, 2, 0, 2, "slurm"), 5)


def test_claimed_ports_are_never_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two test processes that claim at once get two ports; one that something listens on is passed over."""
    with testing.claimed_port() as port, socket.create_server(("", port)):
        assert port in testing.PORTS
        monkeypatch.setattr(testing, "PORTS", range(port, port + 1))
        with pytest.raises(testing.RankFailure, match="no port"), testing.claimed_port():
            pass
    with testing.claimed_port(), pytest.raises(testing.RankFailure, match="no port"), testing.claimed_port():
        pass
