"""The connections by which ranks learn of each other's end: words, sudden deaths, goodbyes, and strangers."""

from __future__ import annotations

import socket

import pytest

from cptron.runtime.lifeline import Ending
from cptron.testing import run_ranks

WORDS = "ValueError: größer than\nallowed"


def hear(deed: str) -> list[Ending]:
    """What this rank hears when rank 1 (of three) does something."""
    import torch.distributed as dist

    from cptron.runtime.dist import init_process_group, shutdown
    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.lifeline import Lifeline

    ranks = launched_ranks()
    assert ranks is not None
    init_process_group("gloo", ranks, 60)
    heard: list[Ending] = []
    lifeline = Lifeline(ranks, heard.append)
    if ranks.rank == 1:
        (peer,) = lifeline._connected()
        if deed == "words":
            lifeline.tell(Ending(1, 76, WORDS))
        if deed == "death":
            peer.shutdown(socket.SHUT_RDWR)
        if deed == "goodbye":
            lifeline.close()
        if deed == "strangers":
            for line in (
                b'{"rank": 0, "code": 1, "text": ""}\n',
                b"GET / HTTP/1.1\r\n\r\n",
                b"[]\n",
                b"\xff" * 99,
            ):
                with socket.create_connection(peer.getpeername()[:2]) as stranger:
                    stranger.sendall(line)
    elif deed in ("words", "death"):
        assert lifeline.wait(60) == heard[0]
    dist.barrier()
    if ranks.rank != 1 or deed != "goodbye":
        lifeline.close()
    shutdown()
    return heard


@pytest.mark.parametrize(
    ("deed", "ending"),
    [("words", Ending(1, 76, WORDS)), ("death", Ending(1, 1, "")), ("goodbye", None), ("strangers", None)],
)
def test_what_the_others_hear(deed: str, ending: Ending | None) -> None:
    """Rank 0 at once and rank 2 by way of it, each once; of a goodbye, and of who is no rank, nothing."""
    wanted = [ending] if ending else []
    first, itself, last = run_ranks(hear, 3, deed, timeout_s=120)
    assert (first, last) == (wanted, wanted)
    if deed != "death":
        assert itself == []
