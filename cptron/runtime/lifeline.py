"""A connection from every rank to rank 0, over which the ranks learn of each other's end.

Place in the flow: opened when the ranks have joined, used by `failure`. Collectives do not tell: with NCCL a lost rank
is a wait until a timeout. Invariant: the kernel closes the connection of a process that dies, however it dies, so its
end is known within moments, and a slow rank is never taken for a dead one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cptron.errors import FAILED_EXIT_CODE, LaunchError
from cptron.runtime.launcher import Ranks

CONNECT_S = 60.0
MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Ending:
    """The bad end of one rank."""

    rank: int
    code: int
    """What it exits with."""
    text: str
    """Its last words; empty when it died without any."""


class Lifeline:
    """This rank's end of the connections: rank 0 has one to every other rank, the others have one to rank 0."""

    def __init__(self, ranks: Ranks, on_ending: Callable[[Ending], None]) -> None:
        """Connect the ranks; collective. `on_ending` is called once, in a thread, with the first end of another rank.
        Raises `LaunchError` on all ranks when one cannot reach rank 0."""
        import torch.distributed as dist

        from cptron.runtime.dist import agree

        self._ranks, self._on_ending = ranks, on_ending
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, int] = {}
        self._received: dict[socket.socket, bytes] = {}
        self._known = threading.Event()
        self.ending: Ending | None = None
        """The first end of another rank that became known."""
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, "close")
        where: list[Any] = [None]
        if ranks.is_main:
            where = [self._listen()]
        dist.broadcast_object_list(where, src=0)
        host, port, self._token = where[0]
        if not ranks.is_main:
            agree(lambda: self._connect(host, port))
        else:
            agree(lambda: None)
        self._thread = threading.Thread(target=self._attend, name="lifeline", daemon=True)
        self._thread.start()

    def _listen(self) -> tuple[str, int, str]:
        """Where the others find rank 0, and the word by which it knows them."""
        token = uuid.uuid4().hex
        host, bound, family = "127.0.0.1", "127.0.0.1", socket.AF_INET
        if self._ranks.local_world_size < self._ranks.world_size:
            bound, (host, family) = "", _own_address()
        server = socket.create_server((bound, 0), family=family, backlog=self._ranks.world_size)
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ, "accept")
        return host, server.getsockname()[1], token

    def _connect(self, host: str, port: int) -> None:
        try:
            peer = socket.create_connection((host, port), timeout=CONNECT_S)
        except OSError as error:
            raise LaunchError(
                f"rank {self._ranks.rank} cannot reach rank 0 at {host}:{port} ({error}); "
                "open the ports between the machines, as gloo and NCCL need them too"
            ) from None
        self._add(peer, rank=0)
        self._send(peer, {"token": self._token, "rank": self._ranks.rank})

    def _add(self, peer: socket.socket, rank: int) -> None:
        _keep_alive(peer)
        with self._lock:
            self._peers[peer] = rank
        self._received[peer] = b""
        self._selector.register(peer, selectors.EVENT_READ, "read")

    def tell(self, ending: Ending) -> None:
        """Let all other ranks know this rank's last words; by way of rank 0."""
        for peer in self._connected():
            self._send(peer, asdict(ending))

    def wait(self, timeout_s: float) -> Ending | None:
        """The first end of another rank, if it becomes known in time."""
        self._known.wait(timeout_s)
        return self.ending

    def close(self) -> None:
        """Say goodbye, so that nobody takes what follows for a death."""
        for peer in self._connected():
            self._send(peer, {"goodbye": True})
        self._wake.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _connected(self) -> list[socket.socket]:
        with self._lock:
            return list(self._peers)

    def _send(self, peer: socket.socket, message: dict[str, Any]) -> None:
        line = json.dumps({**message, "text": str(message.get("text", ""))[:MAX_TEXT]}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # gone: its own end is noticed when it is read
            peer.sendall(line)

    def _attend(self) -> None:
        """The thread: listen to all connections until closed."""
        while True:
            for key, _ in self._selector.select():
                if key.data == "close":
                    for each in list(self._selector.get_map().values()):
                        each.fileobj.close()  # type: ignore[union-attr]
                    self._selector.close()
                    return
                if key.data == "accept":
                    with contextlib.suppress(OSError):
                        self._add(key.fileobj.accept()[0], rank=-1)  # type: ignore[union-attr]
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)

    def _read(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._lost(peer)
            return
        *lines, self._received[peer] = (self._received[peer] + data).split(b"\n")
        for line in lines:
            if peer in self._received:
                self._understand(peer, line)

    def _understand(self, peer: socket.socket, line: bytes) -> None:
        """A greeting, a goodbye, or an ending, in JSON; whoever says something else is no rank."""
        try:
            message = json.loads(line)
            if self._peers[peer] < 0 and message.get("token") == self._token:
                with self._lock:
                    self._peers[peer] = int(message["rank"])
            elif self._peers[peer] < 0 or message.get("goodbye"):
                self._forget(peer)
            else:
                self._heard(Ending(int(message["rank"]), int(message["code"]), str(message["text"])), peer)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._forget(peer)

    def _lost(self, peer: socket.socket) -> None:
        rank = self._peers[peer]
        self._forget(peer)
        if rank >= 0:
            self._heard(Ending(rank, FAILED_EXIT_CODE, ""), peer)

    def _forget(self, peer: socket.socket) -> None:
        with self._lock:
            self._peers.pop(peer, None)
        self._received.pop(peer, None)
        self._selector.unregister(peer)
        peer.close()

    def _heard(self, ending: Ending, source: socket.socket) -> None:
        if self.ending is not None:
            return
        self.ending = ending
        for peer in self._connected() if self._ranks.is_main else []:
            if peer is not source:
                self._send(peer, asdict(ending))
        self._on_ending(ending)
        self._known.set()


def _own_address() -> tuple[str, socket.AddressFamily]:
    """How the other machines reach this one: by the name they know already, or by the address on the way to it."""
    name, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        own = str(probe.getsockname()[0])
    return (name if own == address[0] else own), family


def _keep_alive(peer: socket.socket) -> None:
    """Notice a machine that lost its power, too: after 30 s."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
