"""Names of files and directories that are being written, of each writer its own, and the removal of those left behind.

Place in the flow: `durable.replacing` and the corpus room write under these names and rename what is whole.
Invariant: no two writers have one name, on whatever machines they are, so they never mix bytes; what a living writer
may still rename is not taken from it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

_END = ".partial"
_OWN = re.compile(r"\.([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9]+" + re.escape(_END))
"""Machine, process, its start and a number, behind the final name."""
_ABANDONED_S = 24 * 3600.0
"""Without a write, after which a writer of another machine, of which nothing can be known, is taken for dead."""
_number = itertools.count()


def own_partial(final: Path) -> Path:
    """Where `final` is written before it gets its name; another one at each call."""
    process = os.getpid()
    own = f"{_machine()}-{process}-{_start_of(process)}-{next(_number)}"
    return final.with_name(f"{final.name}.{own}{_END}")


def partials_of(final: Path) -> list[Path]:
    """What writers of `final` have begun, and perhaps left."""
    name = final.name
    return [
        path
        for path in final.parent.glob("*" + _END)
        if path.name.startswith(name) and _OWN.fullmatch(path.name[len(name) :])
    ]


def remove_stale(final: Path) -> None:
    """Remove what writers of `final` have left that are dead, or have written nothing for a day. Raises OSError."""
    for path in partials_of(final):
        if not _may_live(path):
            remove(path)


def remove_partials(directories: Iterable[Path], *, only_stale: bool) -> None:
    """Remove what is being written right in `directories`; `only_stale`: by writers that are dead, or have written
    nothing for a day. Raises OSError."""
    for directory in directories:
        for path in directory.glob("*" + _END):
            if _OWN.search(path.name) and not (only_stale and _may_live(path)):
                remove(path)


def remove(path: Path) -> None:
    """A file or directory, at which another process may be too; nothing where nothing is. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _may_live(path: Path) -> bool:
    found = _OWN.search(path.name)
    assert found is not None
    machine, process, start = found[1], int(found[2]), int(found[3])
    if machine == _machine():
        now = _start_of(process)
        return now == start or now == 0
    try:
        newest_s = max(one.stat().st_mtime for one in (path, *path.rglob("*")))
    except OSError:
        return False  # it has just got its name, or is gone
    return time.time() - newest_s < _ABANDONED_S


@functools.cache
def _machine() -> str:
    """This boot of this machine, with its process ids as they are seen here: a container has others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = f"{os.uname().nodename} {os.getpid()} {time.time_ns()}"  # then nothing is known of any other process
    return hashlib.blake2b(boot.encode(), digest_size=4).hexdigest()


def _start_of(process: int) -> int:
    """When a process of this machine began, in ticks since the boot; -1: there is none, 0: that is not told."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return -1
    except PermissionError:
        pass
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
