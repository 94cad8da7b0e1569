"""The archive around a block's bytes that makes it a tensor saved by torch, without torch.

Place in the flow: `block_file` puts it around what it writes, so that whatever reads torch's distributed checkpoints
reads ours. Invariant: the bytes of the tensor begin at a multiple of 64 and lie in one piece, so that `reader` needs
nothing of the archive.

The form is torch's: a zip archive, stored without compression, with a pickled description, the bytes, and a version.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

ALIGNMENT = 64
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}
"""torch's names for the memory of a type."""

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_DESCRIPTOR = struct.Struct("<IIII")
_SIZES_FOLLOW = 1 << 3
_DAY_ONE = 0x21
"""1 January 1980, the first day that zip knows."""
_PADDING_FIELD = 0x4246


def describe(dtype: str, sizes: Sequence[int]) -> bytes:
    """The pickle of a contiguous tensor whose bytes are the record `data/0`."""
    strides = [1] * len(sizes)
    for axis in range(len(sizes) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * sizes[axis + 1]
    numel = 1
    for size in sizes:
        numel *= size
    storage = (
        b"("
        + _text("storage")
        + f"ctorch\n{STORAGES[dtype]}\n".encode()
        + _text("0")
        + _text("cpu")
        + _int(numel)
    )
    return b"".join(
        [
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(",
            storage + b"tQ",
            _int(0) + _tuple(sizes) + _tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtR.",
        ]
    )


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_int, values)) + b"t"


@dataclass
class Archive:
    """Builds the bytes before and after those of one tensor; `position` counts from the start of the archive."""

    start: int
    """Of the archive in its file."""
    position: int = 0
    _central: list[bytes] = field(default_factory=list)
    _data_at: int = 0

    def before(self, dtype: str, sizes: Sequence[int]) -> bytes:
        """All that precedes the tensor's bytes."""
        head = self._record(b"archive/data.pkl", describe(dtype, sizes))
        self._data_at = self.position
        name = b"archive/data/0"
        used = self.start + self.position + _LOCAL.size + len(name) + 4
        padding = struct.pack("<HH", _PADDING_FIELD, -used % ALIGNMENT) + bytes(-used % ALIGNMENT)
        head += _LOCAL.pack(0x04034B50, 20, _SIZES_FOLLOW, 0, 0, _DAY_ONE, 0, 0, 0, len(name), len(padding))
        head += name + padding
        self.position = len(head)
        return head

    def after(self, crc: int, num_bytes: int) -> bytes:
        """All that follows the tensor's `num_bytes` bytes of checksum `crc`."""
        assert num_bytes < 2**32 - 2**20, "blocks are cut smaller than what a plain zip archive holds"
        self._central.append(_entry(b"archive/data/0", crc, num_bytes, self._data_at, _SIZES_FOLLOW))
        tail = _DESCRIPTOR.pack(0x08074B50, crc, num_bytes, num_bytes)
        self.position += num_bytes + len(tail)
        tail += self._record(b"archive/version", b"3\n")
        directory = b"".join(self._central)
        count = len(self._central)
        return tail + directory + _END.pack(0x06054B50, 0, 0, count, count, len(directory), self.position, 0)

    def _record(self, name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(content)
        self._central.append(_entry(name, crc, len(content), self.position, 0))
        header = _LOCAL.pack(0x04034B50, 20, 0, 0, 0, _DAY_ONE, crc, len(content), len(content), len(name), 0)
        record = header + name + content
        self.position += len(record)
        return record


def _entry(name: bytes, crc: int, size: int, at: int, flags: int) -> bytes:
    """A line of the archive's directory."""
    header = _CENTRAL.pack(
        0x02014B50, 20, 20, flags, 0, 0, _DAY_ONE, crc, size, size, len(name), 0, 0, 0, 0, 0, at
    )
    return header + name
