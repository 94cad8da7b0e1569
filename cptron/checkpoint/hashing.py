"""Hashes files side by side.

Place in the flow: a checkpoint's files are hashed when it is published, and again when it is to be trusted; imports no
torch. Invariant: a file is read once, in pieces, however large it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cptron.checkpoint.block_file import FileRecord

_PIECE_BYTES = 2**22


def num_threads() -> int:
    """Threads that hash at a time: as many as there are processors, and no more than a disk keeps busy."""
    return min(8, len(os.sched_getaffinity(0)))


def hash_file(path: Path) -> FileRecord:
    """Size and sha256 of a file. Raises OSError."""
    sha256 = hashlib.sha256()
    size = 0
    buffer = bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            sha256.update(memoryview(buffer)[:count])
            size += count
    return FileRecord(size, sha256.hexdigest())


def hash_files(directory: Path, names: Sequence[str], threads: int = 0) -> dict[str, FileRecord]:
    """Records of the files `names` of `directory`. Raises OSError."""
    with ThreadPoolExecutor(threads or num_threads(), "hash") as pool:
        return dict(zip(names, pool.map(lambda name: hash_file(directory / name), names), strict=True))
