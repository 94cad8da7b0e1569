"""JSON that comes from outside, parsed so that it can fail in one way only; and the names of files in it.

Place in the flow: under every reader of a JSON file. Invariant: whatever the text is, a value is returned or
`ValueError` is raised; Python's own parser runs out of stack on brackets within brackets, which is no `ValueError`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MOST_DEPTH = 100
"""Of objects within objects."""
_MOST_BYTES = 255


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` where it is none, or nested too deeply to be read."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    marks: tuple[Any, Any] = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, marks)) > MOST_DEPTH:
        _require_shallow(value)
    return value


def _require_shallow(value: Any) -> None:
    """Raise ValueError where showing `value` in a message would run out of stack."""
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        held = (holder.values() if isinstance(holder, dict) else holder for holder in level)
        level = [item for items in held for item in items if isinstance(item, dict | list)]


def is_file_name(value: object) -> bool:
    """Whether a value that stands for a file beside the JSON is a name that a file can have, and no path elsewhere."""
    if not isinstance(value, str) or not value or "\0" in value or Path(value).name != value:
        return False
    try:
        return len(os.fsencode(value)) <= _MOST_BYTES
    except UnicodeEncodeError:
        return False
