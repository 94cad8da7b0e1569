"""One writer for a run directory, for the writer's whole life.

Place in the flow: the main rank takes the lock before the run writes anything; `cptron checkpoint prune` asks for it
too. Imports no torch. Invariant: the kernel holds the lock, not the file: it is gone with the process that took it,
however that ends, so a file that is left behind stands in nobody's way, and a child never holds it on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cptron.durable import make_directory
from cptron.errors import ConfigError

LOCK = "lock"
PATIENCE_S = 2.0
"""Who only asks for a lock holds it for an instant; a writer tries again for so long."""

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system answers that has no locks, or whose lock server is not there."""

_HOLDER = re.compile(r"pid \d+ on host (?P<host>\S+) since .+")


class Held(Exception):
    """Another process holds the lock; the text says which."""


@contextmanager
def sole_writer(run: Path) -> Iterator[list[str]]:
    """Hold `run`, made where it does not exist, against every other writer; yields what people should know: that the
    file system has no locks, or that a writer on another host has left its lock.

    The file is removed at the end, and so are directories made for it that nothing else came into. Raises
    `ConfigError` where another process writes the run, and where the directory cannot be written.
    """
    made: list[Path] = []
    try:
        try:
            descriptor, lacking, left_by = _make_and_take(run, made)
        except OSError as error:
            raise ConfigError(
                f"run.dir={run} cannot be written ({error}); make it writable or choose another run.dir"
            ) from None
        except Held as error:
            raise _taken(run, str(error)) from None
        try:
            yield _notes(run, lacking, left_by)
        finally:
            _give_back(run / LOCK, descriptor)
    finally:
        _remove_empty(made)


@contextmanager
def exclusive(path: Path, patience_s: float) -> Iterator[None]:
    """Hold the lock file `path` for as long, on a file system that has locks; it is removed at the end. Raises `Held`
    where another process has held it for `patience_s`, and OSError."""
    descriptor, _, _ = _take(path, patience_s)
    try:
        yield
    finally:
        _give_back(path, descriptor)


def other_writer(run: Path) -> str:
    """Who writes `run` now, as `pid 123 on host x since ...`; empty when nobody does. Only reads."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    except OSError:  # no locks here: nobody can hold one
        return ""
    finally:
        os.close(descriptor)
    return ""


def refuse_other_writer(run: Path) -> None:
    """Raise `ConfigError` where another process writes `run` now."""
    holder = other_writer(run)
    if holder:
        raise _taken(run, holder)


def _notes(run: Path, lacking: str, left_by: str) -> list[str]:
    if lacking:
        return [
            f"run.dir={run} is on a file system without locks ({lacking}): nothing keeps a second writer out; "
            "start no other run there"
        ]
    if left_by:
        return [
            f"run.dir={run} has a lock that {left_by} has left; should that run still live, locks of this file system "
            "do not reach from host to host: stop one of them"
        ]
    return []


def _make_and_take(run: Path, made: list[Path]) -> tuple[int, str, str]:
    """What `_take` returns for the lock of `run`; `made` becomes the directories made for it, inner ones first."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        made[:] = [path for path in (run, *run.parents) if not path.exists()]
        try:
            make_directory(run)
            return _take(run / LOCK, PATIENCE_S)
        except (FileNotFoundError, FileExistsError):
            if (
                time.monotonic() > deadline
            ):  # else a start that wrote nothing is removing the directory it made
                raise
            time.sleep(0.01)


def _take(path: Path, patience_s: float) -> tuple[int, str, str]:
    """Descriptor of the locked file, what the file system answered if it has no locks, and which writer on another host
    has left the file. Raises OSError or `Held`."""
    deadline = time.monotonic() + patience_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lacking = _lock(descriptor)
            if lacking or _is_the_file(descriptor, path):
                left_by = _other_host(descriptor)
                _write_holder(descriptor)
                _held.add(descriptor)
                return descriptor, lacking, left_by
            # else the holder before has just removed the file
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Held(_holder(descriptor)) from None
            time.sleep(0.05)
        finally:
            if descriptor not in _held:
                os.close(descriptor)


def _lock(descriptor: int) -> str:
    """What a file system without locks answers; empty when the lock is taken. Raises OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return str(error)
        raise
    return ""


def _is_the_file(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the locked file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _other_host(descriptor: int) -> str:
    """Whom the file names, if that was on another host."""
    holder = _holder(descriptor)
    found = _HOLDER.fullmatch(holder)
    return holder if found and found["host"] != socket.gethostname() else ""


def _write_holder(descriptor: int) -> None:
    """Say who holds it, for others to read. A full disk, on which somebody may want to delete, is no obstacle."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = f"pid {os.getpid()} on host {socket.gethostname()} since {since}\n"
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, text.encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 200, 0).decode("utf-8", "replace").split("\n")[0]
    return "".join(character for character in text if character.isprintable()) or "another process"


def _taken(run: Path, holder: str) -> ConfigError:
    return ConfigError(f"run.dir={run} is being written by {holder}; stop it or choose another run.dir")


def _give_back(path: Path, descriptor: int) -> None:
    """Remove the file while it is still locked, so that who takes the lock next makes its own."""
    _held.discard(descriptor)
    try:
        if _is_the_file(descriptor, path):
            path.unlink()
    except OSError:  # a file that stays blocks nobody
        pass
    finally:
        os.close(descriptor)


def _remove_empty(made: list[Path]) -> None:
    """Remove those of `made`, inner ones first, that nothing else has come into."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return


_held: set[int] = set()
"""Descriptors of locks that this process holds."""


def _let_go_in_child() -> None:
    """A forked child shares the descriptor, and would hold the lock on after this process."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
