"""Keeps a checkpoint from being deleted while somebody reads it.

Place in the flow: commands that read a checkpoint for long enter `reading`; `prune` asks. Imports no torch. Invariant:
where the file system has locks, what is being read is not deleted; a reader that dies holds nothing. Where it cannot
be told, nothing is deleted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cptron.checkpoint.layout import MANIFEST
from cptron.checkpoint.run_lock import NO_LOCKS


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
    """Whether nobody reads `checkpoint`, or can begin to in the context. On a file system without locks, and of what
    has no manifest, nobody is known to."""
    try:
        descriptor = _open(checkpoint / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        yield True
        return
    except OSError:
        yield False
        return
    try:
        yield _is_free(descriptor)
    finally:
        os.close(descriptor)


def _open(manifest: Path) -> int:
    """For writing, as NFS wants it of who locks a file alone; a manifest may be read-only."""
    try:
        return os.open(manifest, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # BlockingIOError: somebody reads it
        return error.errno in NO_LOCKS
    return True
