"""A directory of index arrays that are made once and mapped by everyone.

Place in the flow: `order` asks it for the running sums of an epoch; `cptron data prepare` fills it ahead.
Invariant: a file under its final name is whole and holds what its key says: it is published by one rename,
and its checksum is compared when it is opened. Nobody waits for another process longer than for the work.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cptron.durable import fsync_path
from cptron.errors import DataError

Int64Array = npt.NDArray[np.int64]

_HEADER = struct.Struct(
    "<8sI4xQ"
)  # magic, CRC-32 of the numbers, how many there are; keeps the numbers aligned
_MAGIC = b"CPTIDX\x00\x01"
_WAIT_S = 60.0


class IndexCache:
    """Arrays by key. Any number of processes and nodes may share the directory, or have one each."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"data.cache_dir={directory} cannot be made ({error}); choose another one"
            ) from None

    def get(self, key: str, build: Callable[[], Int64Array]) -> Int64Array:
        """The array of `key`, mapped; made by `build` when it is not there or damaged."""
        path = self._directory / f"{key}.index"
        found = _load(path)
        if found is not None:
            return found
        with self._building(path):
            found = _load(path)  # another process may have made it while this one waited
            if found is None:
                array = build()
                self._publish(path, array)
                return array
        return found

    @contextmanager
    def _building(self, path: Path) -> Iterator[None]:
        """Keep others on this file system from doing the same work; a lock that cannot be had, or is held too
        long, only costs doing it twice."""
        try:
            descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            yield
            return
        try:
            deadline = time.monotonic() + _WAIT_S
            while not _try_lock(descriptor) and time.monotonic() < deadline and not path.exists():
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _publish(self, path: Path, array: Int64Array) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        data = np.ascontiguousarray(array, dtype="<i8").data.cast("B")
        try:
            with partial.open("xb") as stream:
                stream.write(_HEADER.pack(_MAGIC, zlib.crc32(data), len(array)))
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            fsync_path(path.parent)
        except OSError as error:
            raise DataError(
                f"data.cache_dir: {path} cannot be written ({error}); free space or choose another one"
            ) from None
        finally:
            partial.unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _load(path: Path) -> Int64Array | None:
    """The array of a file; None when there is none or it is damaged."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
        return None
    if len(raw) < _HEADER.size:
        return None
    magic, checksum, count = _HEADER.unpack(raw[: _HEADER.size].tobytes())
    data = raw[_HEADER.size :]
    if magic != _MAGIC or len(data) != 8 * count or zlib.crc32(data.data) != checksum:
        return None
    array: Int64Array = np.frombuffer(raw, "<i8", count, _HEADER.size)
    return array
