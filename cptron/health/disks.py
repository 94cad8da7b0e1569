"""How fast each machine writes and reads a directory, and whether all of them see the same one.

Place in the flow: measured by the first rank of every machine for `cptron doctor --cluster`. Invariant: everything
happens in a directory of its own below the one that is looked at, which is removed; what a machine cannot do is a
finding, no error.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILES = 100
MOST_FILES = 100_000
"""Of a data directory: those that come first by their folders."""
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Disk:
    """A directory as one machine sees it."""

    host: str
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    write_mb_per_s: float = 0.0
    """With fsync."""
    read_mb_per_s: float = 0.0
    """After the kernel was asked to forget the file; a network file system's server may still have it in memory."""
    files_per_s: float = 0.0
    """Made, looked at, renamed and removed."""
    seen: tuple[str, ...] = ()
    """Machines whose mark this one found."""


def measure_disk(
    directory: Path, host: str, number: int, count: int, token: str, mib: int, meet: Callable[[], object]
) -> Disk:
    """Look at the directory as machine `number` of `count`, of which each writes a mark; `meet` is a barrier that
    every machine comes to twice, whatever happened to it. `token` is this check's own name, the same on all."""
    place = directory / f".cptron-doctor-{token}"
    problem, speeds = "", (0.0, 0.0, 0.0)
    try:
        if not directory.is_dir():
            raise NotADirectoryError(f"{directory} is no directory here")
        place.mkdir(exist_ok=True)
        (place / f"mark-{number}").write_text(host, encoding="utf-8")
        speeds = _speeds(place, number, mib)
    except OSError as error:
        problem = " ".join(str(error).split())
    meet()
    seen: tuple[str, ...] = ()
    try:
        # by name: a network file system may show a listing that it remembers
        marks = [place / f"mark-{each}" for each in range(count)]
        seen = tuple(mark.read_text(encoding="utf-8") for mark in marks if mark.is_file())
    except OSError as error:
        problem = problem or " ".join(str(error).split())
    meet()
    shutil.rmtree(place, ignore_errors=True)
    return Disk(host, problem, *speeds, seen=seen)


def read_data(directory: Path, host: str, mib: int) -> Disk:
    """A directory that is only read: how fast, and as `seen` what it and the folders in it hold, names and sizes in
    short; empty where that is nothing. Reads at most so much of its largest file."""
    try:
        found = sorted(itertools.islice(_files_of(directory), MOST_FILES))
        largest = max(found, key=lambda item: item[1], default=("", 0))
        speed = _reading(directory / largest[0], mib) if largest[1] else 0.0
    except OSError as error:
        return Disk(host, " ".join(str(error).split()))
    digest = hashlib.sha256(repr(found).encode()).hexdigest()[:12]
    return Disk(host, read_mb_per_s=speed, seen=(f"{len(found)} files, {digest}",) if found else ())


def _files_of(directory: Path) -> Iterator[tuple[str, int]]:
    """Names from there on, and sizes. Raises OSError where the directory itself cannot be listed."""
    os.scandir(directory).close()
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for path in (Path(folder, name) for name in sorted(names)):
            if path.is_file():
                yield str(path.relative_to(directory)), path.stat().st_size


def _reading(path: Path, mib: int) -> float:
    """MB/s of the first so many MiB of a file that the kernel was asked to forget."""
    count = 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start_s = time.perf_counter()
        while count < mib * BLOCK and (block := file.read(BLOCK)):
            count += len(block)
    return count / max(time.perf_counter() - start_s, 1e-9) / 1e6


def _speeds(place: Path, number: int, mib: int) -> tuple[float, float, float]:
    """Writing and reading in MB/s, files a second."""
    path, block = place / f"file-{number}", os.urandom(BLOCK)
    start_s = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(block)
        os.fsync(file.fileno())
        written_s = time.perf_counter() - start_s
    read_mb_per_s = _reading(path, mib)
    path.unlink()
    return mib * BLOCK / written_s / 1e6, read_mb_per_s, _files_per_s(place, number)


def _files_per_s(place: Path, number: int) -> float:
    start_s = time.perf_counter()
    for index in range(FILES):
        path = place / f"small-{number}-{index}"
        path.touch()
        path.stat()
        path.rename(path.with_suffix(".moved"))
        path.with_suffix(".moved").unlink()
    return FILES / (time.perf_counter() - start_s)
