"""Damage to bytes of any format: flips, cuts, insertions, doubled and joined stretches, and overflowing lengths.

Place in the flow: the default mutator of a target, and the last step of the mutators that know a format.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

EDGES = (
    *(0, 1, 2, 3, 7, 8, 255, 256, 4095, 4096, 65535, 65536),
    *(
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**48,
        2**62,
        2**63 - 1,
        2**63,
        2**64 - 1,
        -1,
        -2,
        -(2**31),
        -(2**63),
    ),
)
"""Values at which lengths and offsets of fixed width go wrong."""
WORDS = (
    b"\0",
    b"\xff",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\",
    b"\xed\xa0\x80",
    b"\xfe\xff",
)
_MOST_BYTES = 1 << 20


def mutate_bytes(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """One to four damages, one after the other."""
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        content = draw.choice(_DAMAGES)(draw, content, others)[:_MOST_BYTES]
    return content


def put_number(draw: random.Random, content: bytes, at: int | None = None, width: int = 0) -> bytes:
    """A number of 1, 2, 4 or 8 bytes, little or big endian, replaced by an edge or moved by a little."""
    width = width or draw.choice((1, 2, 4, 8))
    if len(content) < width:
        return content
    at = draw.randrange(len(content) - width + 1) if at is None else min(at, len(content) - width)
    order = draw.choice(("<", "<", "<", ">"))
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    (old,) = struct.unpack_from(order + code, content, at)
    new = (
        draw.choice(EDGES)
        if draw.random() < 0.6
        else old + draw.choice((-256, -8, -2, -1, 1, 2, 8, 256, old))
    )
    return content[:at] + struct.pack(order + code, new % (1 << 8 * width)) + content[at + width :]


def _stretch(draw: random.Random, content: bytes) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    longest = draw.choice((1, 4, 16, 64, 1024, len(content)))
    return start, min(len(content), start + draw.randint(0, longest))


def _flip(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    if not content:
        return b"\0"
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    if not content:
        return content
    at = draw.randrange(len(content))
    return content[:at] + bytes([draw.choice((0, 255, draw.randrange(256)))]) + content[at + 1 :]


def _cut(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: draw.choice((0, 1, 7, 8, draw.randrange(len(content) + 1), max(0, len(content) - 1)))]


def _remove(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _stretch(draw, content)
    return content[:start] + content[stop:]


def _insert(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(content) + 1)
    new = draw.choice(
        (draw.choice(WORDS), draw.choice(WORDS) * draw.choice((2, 100, 5000)), draw.randbytes(16))
    )
    return content[:at] + new + content[at:]


def _double(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _stretch(draw, content)
    return content[:stop] + content[start:stop] * draw.choice((1, 1, 2, 50)) + content[stop:]


def _zero(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _stretch(draw, content)
    return content[:start] + bytes(stop - start) + content[stop:]


def _swap(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    one, two, three = sorted(draw.randrange(len(content) + 1) for _ in range(3))
    return content[:one] + content[two:three] + content[one:two] + content[three:]


def _join(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = draw.choice(others) if others else content[::-1]
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


def _extend(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return content + draw.choice((b"\0", bytes(8), b"\n", draw.randbytes(3), content))


def _number(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    return put_number(draw, content)


_DAMAGES = (
    _flip,
    _flip,
    _flip,
    _set,
    _set,
    _cut,
    _cut,
    _remove,
    _insert,
    _double,
    _zero,
    _swap,
    _join,
    _extend,
)
_DAMAGES = (*_DAMAGES, _number, _number, _number)
