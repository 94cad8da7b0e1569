"""All targets: which reader reads which format."""

from __future__ import annotations

import targets_config
import targets_corpus
import targets_tokens
from fuzz_target import Target

TARGETS: list[Target] = [*targets_tokens.TARGETS, *targets_config.TARGETS, *targets_corpus.TARGETS]


def named(name: str) -> Target:
    """The target of a name."""
    return next(target for target in TARGETS if target.name == name)
