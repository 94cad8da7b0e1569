"""By which name or address the other machines are told to find rank 0, and how many of them it can have."""

from __future__ import annotations

import resource
import socket
from typing import Any

import pytest

from cptron.runtime.sockets import allow_files, own_address


@pytest.mark.parametrize("found", ["127.0.1.1", "127.0.0.1"])
def test_a_machine_that_finds_its_own_name_on_its_loopback(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Debian's /etc/hosts has it: the others find it by the name, by no loopback of theirs."""

    def resolved(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (found, 29500))]

    monkeypatch.setenv("MASTER_ADDR", "node1.cluster")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    assert own_address() == ("node1.cluster", socket.AF_INET)


@pytest.mark.parametrize(
    ("limits", "num_ranks", "expected"),
    [
        ((1024, 4096), 8, None),
        ((1024, 4096), 512, None),
        ((1024, 4096), 1000, (2000, 4096)),
        ((1024, 4096), 9000, (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), 9000, (18000, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 9000, None),
    ],
)
def test_a_file_for_every_rank(
    limits: tuple[int, int], num_ranks: int, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is raised where it is near, as far as it may be, and never lowered."""
    told: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: told.append(new))
    allow_files(num_ranks)
    assert told == ([expected] if expected else [])
