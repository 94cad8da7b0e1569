"""Small and read-only file systems, where this machine permits to mount them.

Place in the flow: below the trials of `disk`. Invariant: whatever was mounted is unmounted when its context ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from faults.injection.trials import CannotInject

BUSY_S = 20.0
"""A directory that is written to is let alone within this time."""


def _call(*words: str | Path) -> None:
    try:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotInject(f"there is no {words[0]} command ({error})") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise CannotInject(f"a file system cannot be mounted here ({reason}); it takes root's rights")


@contextlib.contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own of so many bytes, in memory."""
    directory.mkdir(parents=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", directory)
    try:
        yield directory
    finally:
        _call("umount", "--lazy", directory)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Let a directory, as it is now, be read only: for root too, whom permissions do not hold."""
    _call("mount", "--bind", directory, directory)
    try:
        _remount(directory)
        yield
    finally:
        _call("umount", "--lazy", directory)


def _remount(directory: Path) -> None:
    """To read only, which waits for a moment in which nothing is open for writing."""
    deadline_s = time.monotonic() + BUSY_S
    while True:
        try:
            _call("mount", "-o", "remount,bind,ro", directory)
            return
        except CannotInject as error:
            if "busy" not in str(error) or time.monotonic() > deadline_s:
                raise
        time.sleep(0.01)


def free_bytes(directory: Path) -> int:
    """Room on the file system of a directory."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def fill(directory: Path, leave_bytes: int) -> Path:
    """Fill the file system but for so many bytes, also while others write to it; returns the file that fills it."""
    ballast = directory / "ballast"
    with ballast.open("ab") as file:
        while (taken := free_bytes(directory) - leave_bytes) > 0:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, taken)
    return ballast
