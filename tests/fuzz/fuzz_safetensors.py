"""Damage to safetensors: the header's length, and offsets, shapes, types and names in it.

Place in the flow: mutator of Hugging Face weights.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from fuzz_bytes import EDGES, mutate_bytes, put_number
from fuzz_json import Pairs, change, dump, parse


def pack(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A file of any header, in JSON or as bytes."""
    written = header if isinstance(header, bytes) else dump(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", (len(written) if length is None else length) % 2**64) + written + data


def mutate_safetensors(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to a field of the header, to its JSON, to its length, or to bytes."""
    kind = draw.random()
    if kind < 0.25:
        return mutate_bytes(draw, content, others)
    if kind < 0.32:
        return put_number(draw, content, 0, 8)
    (length,) = struct.unpack_from("<Q", content)
    header, data = parse(content[8 : 8 + length]), content[8 + length :]
    if kind < 0.6:
        changed = dump(change(draw, header, ())).encode("utf-8", "surrogatepass")
        return pack(changed, data) if draw.random() < 0.9 else pack(changed, data, length)
    for _ in range(draw.choice((1, 1, 2))):
        _field(draw, header)
    return pack(header, data)


def _field(draw: random.Random, header: Pairs) -> None:
    """Another number, type or name, or a tensor twice."""
    at = draw.randrange(len(header))
    name, entry = header[at]
    kind = draw.randrange(7)
    if not isinstance(entry, Pairs) or name == "__metadata__" or kind == 0:
        header.insert(draw.randrange(len(header) + 1), (name, entry))
        return
    fields = dict(entry)
    if kind == 1:
        fields["dtype"] = draw.choice(
            ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "U64", "x", "")
        )
    elif kind == 2:
        fields["shape"] = [draw.choice((*EDGES, 16, 40)) for _ in range(draw.randrange(4))]
    elif kind == 3:
        fields["shape"] = [2**32, 2**32, *fields.get("shape", [])]
    elif kind == 4:
        fields["data_offsets"] = [
            draw.choice((*EDGES, 64, 128, 2560)) for _ in range(draw.choice((2, 2, 2, 1, 3)))
        ]
    elif kind == 5 and len(header) > 1:
        other = header[draw.randrange(len(header))][1]
        fields["data_offsets"] = (
            dict(other).get("data_offsets", [0, 0]) if isinstance(other, Pairs) else [0, 0]
        )
    else:
        start, stop = (*fields.get("data_offsets", (0, 0)), 0, 0)[:2]
        fields["data_offsets"] = [
            start + draw.choice((-8, -1, 0, 1, 8)),
            stop + draw.choice((-8, -1, 0, 1, 8)),
        ]
    header[at] = (name, Pairs(fields.items()))


def planted_safetensors(data: bytes = bytes(64)) -> Mapping[str, bytes]:
    """Headers that lie in each way that a size can."""
    tensor = lambda dtype, shape, first, last: {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}  # noqa: E731
    return {
        "header of 2^63": pack({}, data, 2**63),
        "header of -1": pack({}, data, -1),
        "header of 100 MB": pack({}, data, 10**8),
        "shape that overflows to 64 bytes": pack({"a": tensor("F32", [2**62, 4, 1], 0, 64)}, data),
        "shape that overflows to 0": pack({"a": tensor("F32", [2**32, 2**32], 0, 0)}, data),
        "offsets beyond": pack({"a": tensor("F32", [16], 2**62, 2**62 + 64)}, data),
        "offsets turned": pack({"a": tensor("F32", [16], 64, 0)}, data),
        "overlap": pack({"a": tensor("F32", [16], 0, 64), "b": tensor("F32", [8], 0, 32)}, data),
        "hole": pack({"a": tensor("F32", [4], 0, 16), "b": tensor("F32", [4], 32, 48)}, data),
        "rest": pack({"a": tensor("F32", [4], 0, 16)}, data),
        "name twice": pack(
            b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"a":{"dtype":"F32","shape":[8],"data_offsets":[32,64]}}',
            data,
        ),
        "field twice": pack(
            b'{"a":{"dtype":"U8","dtype":"F32","shape":[64],"shape":[16],"data_offsets":[0,64]}}', data
        ),
        "field twice, turned": pack(
            b'{"a":{"dtype":"F32","dtype":"U8","shape":[16],"shape":[64],"data_offsets":[0,64]}}', data
        ),
        "metadata that is a tensor": pack({"__metadata__": tensor("F32", [16], 0, 64)}, data),
        "deep": pack(b'{"a":' + b"[" * 100_000, data),
        "many": pack({f"t{n}": tensor("F32", [0], 0, 0) for n in range(5000)}, b""),
        "spaces": pack(b"{}" + b" " * 100_000, b""),
        "empty": b"",
        "nothing": pack({}, b""),
        "json": json.dumps({"a": 1}).encode(),
    }
