"""Arrays in a file, one after the other, behind a line of JSON.

Place in the flow: features, decisions and trained models of the steps that select. Invariant: the bytes depend on the
values alone; nothing that is read is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.errors import DataError
from cptron.json_text import parse_json


def save_arrays(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `path`, as it stands: whoever calls renames it."""
    header = {**about, "arrays": list(arrays)}
    with path.open("wb") as stream:
        stream.write(json.dumps(header, sort_keys=True, ensure_ascii=True).encode() + b"\n")
        for array in arrays.values():
            np.save(stream, array, allow_pickle=False)


def load_arrays(path: Path, remedy: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `save_arrays` wrote. Raises DataError, with `remedy`, where it is no such file."""
    try:
        with path.open("rb") as stream:
            about = parse_json(stream.readline())
            arrays = {str(name): np.load(stream, allow_pickle=False) for name in about["arrays"]}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(
            f"{path} is no file of arrays ({' '.join(str(error).split())[:80]}); {remedy}"
        ) from None
    return about, arrays
