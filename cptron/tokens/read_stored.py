"""A stored file as a stream of uncompressed bytes: plain, gzip (any number of members), zstd (any number of frames), or
a file in a ZIP archive.

Place in the flow: `read_lines` cuts what this yields into records.
Invariant: all bytes before a damage are yielded before the damage is raised.
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import zstandard

from cptron.errors import DataError
from cptron.tokens.inputs import Compression

CHUNK_BYTES = 1 << 20
_GZIP_STEP_BYTES = 256 << 10
_ZSTD_STEP_BYTES = 512
"""Compressed bytes per call, whose output zstandard does not limit: 512 bytes become at most 16 MiB."""
_ZSTD_MAX_WINDOW_BYTES = 1 << 31
"""What `zstd --long=31` needs; public dumps are packed so."""
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError)
"""What Python's reader of archives raises; a name that is no text is a ValueError."""


class DamagedError(Exception):
    """The compressed file is cut off or is not what its name says."""


class StoredStream:
    """Chunks of about 1 MiB from an offset in the uncompressed bytes on; a context manager."""

    def __init__(self, path: Path, compression: Compression, offset: int, member: str = "") -> None:
        self._file: io.RawIOBase = _Member(path, member) if member else path.open("rb", buffering=0)
        if compression == "none":
            self._file.seek(offset)
            self._chunks = _plain(self._file)
        else:
            pieces = _gunzip(self._file) if compression == "gzip" else _unzstd(self._file)
            self._chunks = _skip(_gather(pieces), offset)

    def __enter__(self) -> StoredStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        """The chunks; raises DamagedError after the last good byte."""
        return self._chunks

    @property
    def stored_bytes_read(self) -> int:
        """Where the stored file has been read to."""
        return self._file.tell()


class _Member(io.RawIOBase):
    """A file in a ZIP archive."""

    def __init__(self, path: Path, member: str) -> None:
        super().__init__()
        stat = path.stat()
        try:
            self._stream = _archive(path, stat.st_size, stat.st_mtime_ns).open(member)
        except (*_ZIP_DAMAGE, NotImplementedError, RuntimeError, KeyError) as error:
            raise DataError(f"{path}/{member} cannot be unpacked ({error}); unpack the file first") from None

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except MemoryError:
            raise DamagedError("the ZIP file is damaged, or needs more memory than there is") from None
        except (*_ZIP_DAMAGE, OSError) as error:
            raise DamagedError(f"the ZIP file is damaged ({error})") from error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


@lru_cache(maxsize=1)
def _archive(path: Path, size: int, changed_ns: int) -> zipfile.ZipFile:
    """The ZIP file that is read at present: its list of members, which may be long, is read once and not for each."""
    return zipfile.ZipFile(path)


def _plain(file: io.RawIOBase) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _gunzip(file: io.RawIOBase) -> Iterator[bytes]:
    """zlib itself rather than `gzip.GzipFile`, which is slower and loses the bytes read before a damage."""
    data = file.read(_GZIP_STEP_BYTES)
    if not data:
        raise DamagedError("an empty file is not gzip")
    if not _GZIP_MAGIC.startswith(data[: len(_GZIP_MAGIC)]):
        raise DamagedError("this is not gzip, though its name says so; rename or compress it")
    while data:
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            data = data or file.read(_GZIP_STEP_BYTES)
            at_end = not data
            try:
                piece = member.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise DamagedError(f"the gzip stream is damaged ({error})") from error
            data = member.unconsumed_tail
            if piece:
                yield piece
            elif at_end:
                raise DamagedError("the gzip stream ends too early")
        data = member.unused_data or file.read(_GZIP_STEP_BYTES)
        while data and not (data := data.lstrip(b"\0")):  # tapes and some tools pad with zeros
            data = file.read(_GZIP_STEP_BYTES)


def _unzstd(file: io.RawIOBase) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    inside = True  # so that an empty file is a damaged one
    while data := file.read(CHUNK_BYTES):
        for start in range(0, len(data), _ZSTD_STEP_BYTES):
            step = data[start : start + _ZSTD_STEP_BYTES]
            while step:
                try:
                    piece = frame.decompress(step)
                except zstandard.ZstdError as error:
                    raise DamagedError(f"the zstd stream is damaged ({error})") from error
                inside, step = not frame.eof, frame.unused_data
                if not inside:
                    frame = decompressor.decompressobj()
                if piece:
                    yield piece
    if inside:
        raise DamagedError("the zstd stream ends too early")


def _gather(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces joined to chunks, the bytes before a damage too."""
    waiting: list[bytes] = []
    num_bytes = 0
    damage: DamagedError | None = None
    while True:
        try:
            piece = next(pieces, b"")
        except DamagedError as error:
            piece, damage = b"", error
        waiting.append(piece)
        num_bytes += len(piece)
        if num_bytes >= CHUNK_BYTES or (num_bytes and not piece):
            yield b"".join(waiting)
            waiting, num_bytes = [], 0
        if damage is not None:
            raise damage
        if not piece:
            return


def _skip(chunks: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    for chunk in chunks:
        if num_bytes < len(chunk):
            yield chunk[num_bytes:]
        num_bytes = max(0, num_bytes - len(chunk))
