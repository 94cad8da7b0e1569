"""Multi-rank tests on one machine: `run_ranks(fn, world_size)` runs a function on real ranks over gloo.

Place in the flow: used by this project's tests, and meant for its users' tests too. Importing torch and
megatron-core costs seconds, so ranks are processes that stay warm between calls. Invariant: a failure on
one rank is an error of the call, never a hang.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import psutil

from cptron.runtime.host_isa import leave_amx_alone

T = TypeVar("T")

PORTS = range(10000, 20000)
"""Below those of jobs (`runtime.launcher`), which are below those that the kernel gives to connections."""


class RankFailure(AssertionError):
    """A rank raised; the message holds its traceback."""


class _Worker:
    """One warm process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child,), daemon=False)
        self.process.start()
        child.close()

    def kill(self) -> None:
        """End the process, and what it has started: megatron-core's saves leave a process that would outlive it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        self.process.join()
        self.pipe.close()


_pool: list[_Worker] = []


def run_ranks(
    fn: Callable[..., T], world_size: int, /, *args: Any, timeout_s: float = 300, **kwargs: Any
) -> list[T]:
    """Call `fn(*args, **kwargs)` on `world_size` ranks at once; returns their results by rank.

    `fn` is a module-level function; it finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set as torchrun
    sets them. Raises `RankFailure` with the traceback of the first rank that failed, or after `timeout_s`.
    """
    with claimed_port() as port:
        return _run(fn, world_size, port, args, kwargs, timeout_s)


@contextlib.contextmanager
def claimed_port() -> Iterator[int]:
    """A TCP port of this machine that is free, and that nobody else takes meanwhile: nobody is given one of `PORTS`,
    and another caller of this function sees its UDP port taken."""
    for port in random.Random(f"{os.getpid()} {time.monotonic_ns()}").sample(PORTS, len(PORTS)):
        with socket.socket(type=socket.SOCK_DGRAM) as claim, socket.socket() as probe:
            try:
                claim.bind(("127.0.0.1", port))
                probe.bind(("", port))
            except OSError:
                continue
            probe.close()
            yield port
            return
    raise RankFailure(f"no port from {PORTS.start} to {PORTS.stop - 1} is free; stop what listens there")


def _run(
    fn: Callable[..., T], world_size: int, port: int, args: Any, kwargs: Any, timeout_s: float
) -> list[T]:
    while len(_pool) < world_size:
        _pool.append(_Worker())
    workers = _pool[:world_size]
    try:
        for rank, worker in enumerate(workers):
            env = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            worker.pipe.send((env, list(sys.path)))  # the path first: unpickling `fn` imports its module
            worker.pipe.send((fn, args, kwargs))
        return _collect(workers, timeout_s)
    except BaseException:
        stop_ranks()
        raise


def _collect(workers: list[_Worker], timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(results) < len(workers):
        waiting = {worker.pipe: rank for rank, worker in enumerate(workers) if rank not in results}
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailure(f"ranks {sorted(waiting.values())} did not finish within {timeout_s} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting[pipe]
            try:
                failed, value = pipe.recv()
            except EOFError:
                raise RankFailure(
                    f"rank {rank} died with exit code {workers[rank].process.exitcode}"
                ) from None
            if failed:
                raise RankFailure(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(workers))]


def stop_ranks() -> None:
    """End all warm ranks; the next call starts new ones."""
    while _pool:
        _pool.pop().kill()


atexit.register(stop_ranks)


def _serve(pipe: Connection) -> None:
    """A rank's main loop: receive a call, run it, answer."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    leave_amx_alone()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            env, path = pipe.recv()
            os.environ.update(env)
            sys.path[:] = path
            try:
                fn, args, kwargs = pipe.recv()
                answer: tuple[bool, Any] = (False, fn(*args, **kwargs))
            except BaseException:
                answer = (True, traceback.format_exc())
            pipe.send(answer)
