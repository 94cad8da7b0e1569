"""Arrays in a file: a line of JSON that names them, their bytes one after the other, and a check sum.

Place in the flow: features, decisions and trained models of the steps that select. Invariant: the bytes depend on the
values alone; nothing is unpickled, and no more memory is taken than the file has bytes.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.sealed import SEAL_BYTES
from cptron.errors import DataError
from cptron.json_text import parse_json

_TYPES = ("|u1", "<u2", "<u4", "<u8", "<i8", "<f4", "<f8")


def save_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `path`, as it stands: whoever calls renames it."""
    places = {name: [array.dtype.str, list(array.shape)] for name, array in sorted(arrays.items())}
    assert all(kind in _TYPES for kind, _ in places.values()), places
    line = json.dumps({**about, "arrays": places}, sort_keys=True, ensure_ascii=True).encode() + b"\n"
    check = zlib.crc32(line)
    with path.open("wb") as stream:
        stream.write(line)
        for name in places:
            data = _bytes_of(arrays[name])
            stream.write(data)
            check = zlib.crc32(data, check)
        stream.write(check.to_bytes(SEAL_BYTES, "little"))


def load_arrays(path: Path, remedy: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `save_arrays` wrote. Raises DataError, with `remedy`, where it is no such file."""
    try:
        with path.open("rb") as stream:
            line = stream.readline()
            about = parse_json(line)
            size = os.fstat(stream.fileno()).st_size
            places = [_place(name, size, *entry) for name, entry in about["arrays"].items()]
            stored = sum(kind.itemsize * math.prod(shape) for _, kind, shape in places)
            if len(line) + stored + SEAL_BYTES != size:
                raise ValueError("its size is not what its first line says")
            check = zlib.crc32(line)
            arrays = {}
            for name, kind, shape in places:
                array = np.fromfile(stream, kind, math.prod(shape))
                check = zlib.crc32(_bytes_of(array), check)
                arrays[name] = array.reshape(shape)
            if stream.read() != check.to_bytes(SEAL_BYTES, "little"):
                raise ValueError("its check sum is wrong")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no file of arrays ({' '.join(str(error).split())[:80]}); {remedy}"
        ) from None
    return about, arrays


def _place(name: str, most: int, kind: Any, shape: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """An entry of the first line. Raises ValueError or TypeError for anything else."""
    if (
        kind not in _TYPES
        or len(shape) > 2
        or not all(type(size) is int and 0 <= size < most for size in shape)
    ):
        raise ValueError(f"{name} has another type or shape than arrays have")
    return name, np.dtype(kind), tuple(shape)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
