"""The connections by which ranks learn of each other's end: words, sudden deaths, goodbyes, and strangers."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from cptron.runtime.lifeline import Ending
from cptron.testing import run_ranks

WORDS = "ValueError: größer than\nallowed"


def hear(deed: str, rank_0_sleeps_s: float = 0.0) -> list[Ending]:
    """What this rank hears when rank 1 (of three) does something. The thread of rank 0 begins late where told so."""
    import torch.distributed as dist

    from cptron.runtime.dist import init_process_group, shutdown
    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.lifeline import Lifeline

    ranks = launched_ranks()
    assert ranks is not None
    init_process_group("gloo", ranks, 240)
    heard: list[Ending] = []
    attend = Lifeline._attend

    def attend_late(self: Lifeline) -> None:
        time.sleep(rank_0_sleeps_s if self._ranks.is_main else 0.0)
        attend(self)

    Lifeline._attend = attend_late  # type: ignore[method-assign]
    try:
        lifeline = Lifeline(ranks, heard.append)
    finally:
        Lifeline._attend = attend  # type: ignore[method-assign]
    if ranks.rank == 1:
        (peer,) = lifeline._connected()
        if deed == "words":
            lifeline.tell(Ending(1, 76, WORDS))
        if deed == "death":
            peer.shutdown(socket.SHUT_RDWR)
        if deed in ("goodbye", "leaves"):
            lifeline.close(in_peace=deed == "goodbye")
        if deed == "strangers, then words":
            meet_strangers(peer.getpeername()[:2])
            lifeline.tell(Ending(1, 76, WORDS))
    elif deed != "goodbye":
        assert lifeline.wait(60) == heard[0]
    dist.barrier()
    if ranks.rank != 1 or deed not in ("goodbye", "leaves"):
        lifeline.close()
    shutdown()
    return heard


def meet_strangers(address: tuple[str, int]) -> None:
    """Connect as who is no rank, and say what would hurt; the last one is cut off in an endless line."""
    for line in (
        b'{"rank": 0, "code": 1, "text": ""}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b"\xff" * 99,
        b"[" * 30_000 + b"\n",
    ):
        with socket.create_connection(address) as stranger:
            stranger.sendall(line)
    with socket.create_connection(address, timeout=60) as stranger, pytest.raises(ConnectionError):
        while True:
            stranger.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    ("deed", "ending"),
    [
        ("words", Ending(1, 76, WORDS)),
        ("death", Ending(1, 1, "")),
        ("leaves", Ending(1, 1, "")),
        ("goodbye", None),
        ("strangers, then words", Ending(1, 76, WORDS)),
    ],
)
def test_what_the_others_hear(deed: str, ending: Ending | None) -> None:
    """Rank 0 at once and rank 2 by way of it, each once; of a goodbye nothing. Who is no rank is not listened to."""
    wanted = [ending] if ending else []
    first, itself, last = run_ranks(hear, 3, deed)
    assert (first, last) == (wanted, wanted)
    if deed != "death":
        assert itself == []


def test_a_busy_rank_0_is_not_taken_for_a_dead_one() -> None:
    """Its thread comes to nothing before it has said goodbye: no rank is left in the kernel's queue then."""
    assert run_ranks(hear, 3, "goodbye", rank_0_sleeps_s=1.0) == [[], [], []]


def leave_slowly() -> list[Ending]:
    """What this rank hears when rank 0 says goodbye, and has done no more when rank 1 has understood it."""
    import torch.distributed as dist

    from cptron.runtime.dist import init_process_group, shutdown
    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.lifeline import Lifeline

    ranks = launched_ranks()
    assert ranks is not None
    init_process_group("gloo", ranks, 240)
    heard: list[Ending] = []
    lifeline = Lifeline(ranks, heard.append)
    dist.barrier()
    if ranks.is_main:
        wake, lifeline._wake = lifeline._wake, socket.socket()
        threading.Timer(0.5, wake.close).start()
        lifeline.close()
    dist.barrier()
    if not ranks.is_main:
        lifeline.close()
    shutdown()
    return heard


def test_who_has_said_goodbye_hears_nothing_any_more() -> None:
    """The other closes the connection on its word: that is no death."""
    assert run_ranks(leave_slowly, 2) == [[], []]
