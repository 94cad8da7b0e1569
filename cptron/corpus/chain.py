"""What a changed configuration means for what is there: said before the work begins.

Place in the flow: `run.prepare` compares the steps with those of the last run. Invariant: this only tells; what is used
again is decided by fingerprints alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cptron.corpus.schema import CurateConfig
from cptron.durable import replace_text
from cptron.json_text import parse_json

_FILE = "chain.json"


def note_changes(directory: Path, config: CurateConfig, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes for people, and a record for the next time. `steps` are the steps' identities."""
    chain = [
        [step.name, hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()]
        for step, identity in zip(config.steps, steps, strict=True)
    ]
    path = directory / _FILE
    notes = list(_changes(_stored(path), chain))
    replace_text(path, json.dumps(chain) + "\n")
    return notes


def _stored(path: Path) -> list[list[str]] | None:
    try:
        chain = parse_json(path.read_bytes())
        return [[str(name), str(identity)] for name, identity in chain]
    except (OSError, ValueError, TypeError):
        return None  # the notes are no more than notes


def _changes(before: list[list[str]] | None, now: list[list[str]]) -> Iterator[str]:
    if before is None or before == now:
        return
    shared = 0
    while shared < min(len(before), len(now)) and before[shared] == now[shared]:
        shared += 1
    first = now[shared][0] if shared < len(now) else "the output"
    yield (
        f"the steps have changed since the last run, from {first} on: what stages before it made is used again, "
        "all from its stage on is made anew"
    )
