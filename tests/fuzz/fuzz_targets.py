"""All targets: which reader reads which format. One module of targets for each room of readers.

Place in the flow: the short form runs one room at a time, so that rooms of files that need no torch start quickly.
"""

from __future__ import annotations

import importlib

from fuzz_target import Target

ROOMS = (
    "tokens",
    "config",
    "corpus",
    "curate",
    "curate_work",
    "curate_models",
    "tokenizer",
    "weights",
    "checkpoint",
    "run",
    "forgetting",
    "regularise",
    "mixing",
    "plan",
)


def targets_of(room: str) -> list[Target]:
    """The targets of a room."""
    found: list[Target] = importlib.import_module(f"targets_{room}").TARGETS
    return found


def all_targets() -> list[Target]:
    """Every target; a name stands for one of them."""
    found = [target for room in ROOMS for target in targets_of(room)]
    assert len({target.name for target in found}) == len(found), "names must differ"
    return found
