"""JSON that comes from outside, parsed so that it can fail in one way only; and the names of files in it.

Place in the flow: under every reader of a JSON file. Invariant: whatever the text is, a value is returned or
`ValueError` is raised; Python's own parser runs out of stack on brackets within brackets, which is no `ValueError`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_MOST_BYTES = 255


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` where it is none, or nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_file_name(value: object) -> bool:
    """Whether a value that stands for a file beside the JSON is a name that a file can have, and no path elsewhere."""
    if not isinstance(value, str) or not value or "\0" in value or Path(value).name != value:
        return False
    try:
        return len(os.fsencode(value)) <= _MOST_BYTES
    except UnicodeEncodeError:
        return False
