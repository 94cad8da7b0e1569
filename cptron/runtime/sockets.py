"""What a connection from every rank to rank 0 needs of the machine.

Place in the flow: below `lifeline`. Invariant: the address that rank 0 gives is one by which the other machines reach
it.
"""

from __future__ import annotations

import ipaddress
import os
import resource
import socket


def allow_files(num_ranks: int) -> None:
    """Raise this process's own limit of open files, as far as it may, where a connection to every rank comes near."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * num_ranks if hard == resource.RLIM_INFINITY else min(2 * num_ranks, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def own_address() -> tuple[str, socket.AddressFamily]:
    """How the other machines reach this one: by the name they know already, where it is this machine's, or by the
    address on the way to it. A machine may find its own name on its loopback, where no other one finds it."""
    name, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        own = str(probe.getsockname()[0])
    is_here = own == address[0] or ipaddress.ip_address(own).is_loopback
    return (name if is_here else own), family


def keep_alive(peer: socket.socket) -> None:
    """Notice a machine that lost its power, too: after 30 s."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
