"""Keeps a checkpoint from being deleted while somebody reads it.

Place in the flow: commands that read a checkpoint for long enter `reading`; `prune` asks. Imports no torch. Invariant:
where the file system has locks, what is being read is not deleted; a reader that dies holds nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cptron.checkpoint.layout import MANIFEST


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Hold `checkpoint` against deletion, with any number of other readers. What is no checkpoint is not held: whoever
    reads it says so."""
    descriptor = -1
    with suppress(OSError):
        descriptor = os.open(checkpoint / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def unread(checkpoint: Path) -> Iterator[bool]:
    """Whether nobody reads `checkpoint`, or can begin to in the context. Without locks nobody is known to."""
    try:
        descriptor = os.open(checkpoint / MANIFEST, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield True
        return
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass
        yield free
    finally:
        os.close(descriptor)
