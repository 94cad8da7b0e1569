"""A connection from every rank to rank 0, over which the ranks learn of each other's end.

Place in the flow: opened when the ranks have joined, used by `failure`. Collectives do not tell: with NCCL a lost rank
is a wait until a timeout. Invariant: the kernel closes the connection of a process that dies, however it dies, so its
end is known within moments, and a slow rank is never taken for a dead one.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cptron.errors import FAILED_EXIT_CODE, LaunchError
from cptron.runtime.launcher import Ranks
from cptron.runtime.sockets import allow_files, keep_alive, own_address

CONNECT_S = 60.0
MAX_TEXT = 2000
MAX_LINE_BYTES = 65536
"""More than any message takes; who sends a longer line is no rank."""


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
        """Connect the ranks; collective, and rank 0 knows all others when it is back. `on_ending` is called once, in a
        thread, with the first end of another rank. Raises `LaunchError` on all ranks when one cannot reach rank 0."""
        from cptron.runtime.dist import agree, from_main

        self._ranks, self._on_ending = ranks, on_ending
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, int] = {}
        self._received: dict[socket.socket, bytes] = {}
        self._missing = set(range(1, ranks.world_size))
        self._all_greeted = threading.Event()
        self._known = threading.Event()
        self._leaving = False
        self.ending: Ending | None = None
        """The first end of another rank that became known."""
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, "close")
        host, port, self._token = from_main(self._listen)
        self._thread = threading.Thread(target=self._attend, name="lifeline", daemon=True)
        self._thread.start()  # before the others connect: of many, not all fit into the kernel's queue
        try:
            agree(lambda: None if ranks.is_main else self._connect(host, port))
            agree(lambda: self._await_greetings() if ranks.is_main else None)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> tuple[str, int, str]:
        """Where the others find rank 0, and the word by which it knows them."""
        host, bound, family = "127.0.0.1", "127.0.0.1", socket.AF_INET
        try:
            allow_files(self._ranks.world_size)
            if self._ranks.local_world_size < self._ranks.world_size:
                bound, (host, family) = "", own_address()
            server = socket.create_server((bound, 0), family=family, backlog=self._ranks.world_size)
        except OSError as error:
            raise LaunchError(
                f"rank 0 cannot listen for the other ranks ({error}); see that MASTER_ADDR is an address of its machine"
            ) from None
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ, "accept")
        return host, server.getsockname()[1], uuid.uuid4().hex

    def _await_greetings(self) -> None:
        """Else one whose connection still waits in the kernel's queue would take a goodbye for a death."""
        if not self._all_greeted.wait(CONNECT_S):
            count = self._ranks.world_size - 1
            raise LaunchError(
                f"{count - len(self._missing)} of {count} ranks reached rank 0 within {CONNECT_S:g} s; open the ports "
                "between the machines, and let a process have more open files than there are ranks (ulimit -n)"
            )

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
        keep_alive(peer)
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

    def close(self, *, in_peace: bool = True) -> None:
        """Say goodbye, so that nobody takes what follows for a death; unless it is one. From then on nothing is heard:
        the others close the connection on a goodbye, and that is no death either."""
        self._leaving = True
        for peer in self._connected() if in_peace else []:
            self._send(peer, {"goodbye": True})
        self._wake.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _connected(self) -> list[socket.socket]:
        """To ranks, not to who has not said yet which it is."""
        with self._lock:
            return [peer for peer, rank in self._peers.items() if rank >= 0]

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
                    self._accept(key.fileobj)  # type: ignore[arg-type]
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)

    def _accept(self, server: socket.socket) -> None:
        try:
            self._add(server.accept()[0], rank=-1)
        except OSError:  # gone again; or no file is free, until one is closed
            time.sleep(0.05)

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
        if len(self._received.get(peer, b"")) > MAX_LINE_BYTES:
            self._forget(peer)

    def _understand(self, peer: socket.socket, line: bytes) -> None:
        """A greeting, a goodbye, or an ending, in JSON; whoever says something else is no rank."""
        ending = None
        try:
            message = json.loads(line)
            if self._peers[peer] < 0 and message["token"] == self._token:
                self._greeted(peer, int(message["rank"]))
                return
            if self._peers[peer] >= 0 and not message.get("goodbye"):
                ending = Ending(int(message["rank"]), int(message["code"]), str(message["text"]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        if ending is None:
            self._forget(peer)
        else:
            self._heard(ending, peer)

    def _greeted(self, peer: socket.socket, rank: int) -> None:
        with self._lock:
            self._peers[peer] = rank
        self._missing.discard(rank)
        if not self._missing:
            self._all_greeted.set()

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
        if self.ending is not None or self._leaving:
            return
        self.ending = ending
        for peer in self._connected() if self._ranks.is_main else []:
            if peer is not source:
                self._send(peer, asdict(ending))
        self._on_ending(ending)
        self._known.set()
