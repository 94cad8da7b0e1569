"""JSON that comes from outside, parsed so that it can fail in one way only.

Place in the flow: under every reader of a JSON file. Invariant: whatever the text is, a value is returned or
`ValueError` is raised; Python's own parser runs out of stack on brackets within brackets, which is no `ValueError`.
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` where it is none, or nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
