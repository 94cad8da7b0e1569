"""Locks between threads and processes: one byte of a file for each thing that one at a time may do.

Place in the flow: the cache holds a question while it is asked, the endpoint holds one of a few slots.
Invariant: a lock ends with its holder, however that ends. Where a file system has no locks, everybody gets every lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_BUSY = (errno.EAGAIN, errno.EACCES)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.002, 0.1


@contextmanager
def one_of(path: Path, places: Sequence[int]) -> Iterator[bool]:
    """Hold the first of `places` (bytes of `path`) that is free; yields False, and holds none, where none is.

    Locks belong to the open file, so threads of one process keep each other off as well.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield any(_take(descriptor, place) for place in places)
    finally:
        os.close(descriptor)


def _take(descriptor: int, place: int) -> bool:
    wanted = struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        return error.errno not in _BUSY
    return True


@contextmanager
def wait_for(path: Path, places: Sequence[int]) -> Iterator[None]:
    """Hold one of `places`, however long that takes."""
    wait_s = _FIRST_WAIT_S
    while True:
        with one_of(path, places) as held:
            if held:
                yield
                return
        time.sleep(wait_s * random.uniform(0.5, 1.5))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
