"""What is fuzzed: a reader of the product, valid files for it, ways to damage them, and what must hold of a result.

Place in the flow: `targets_*` declare targets, `fuzz_worker` runs inputs through them. Invariant: an input is a pure
function of target, seed and number, so that every finding can be made again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Mutate = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""(source of chance, valid content, contents of other valid files of the format) -> damaged content."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One file of a valid world."""

    directory: Path
    """What the reader is given."""
    file: str
    """Path in `directory` of the file to damage."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.file


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader under test."""

    format: str
    """What people call the files; a row of the table."""
    name: str
    """Unique; a test's name."""
    reader: str
    """Dotted names of what reads them."""
    make: Callable[[Path], Sequence[Seed]]
    """Fills an empty directory with valid files, by the product's writers and by independent ones."""
    read: Callable[[Path], Any]
    """Reads a seed's directory through the product; what it returns can be compared by `==`."""
    mutate: Mutate
    check: Callable[[Path, Any], str | None] = lambda _directory, _value: None
    """What is wrong with a value that was read from damaged files; None: nothing."""
    planted: Callable[[Path], Mapping[str, bytes]] = field(default=lambda _directory: {})
    """Crafted contents by name; all of them go to the first seed's file, in a short run too."""
    refused: frozenset[str] = frozenset()
    """Names of planted contents that must be refused."""
    budget: float = 1.0
    """Share of inputs beside other targets."""
    memory_bytes: int = 48 << 20
    """What reading may take beside `memory_factor` times the size of the directory's files."""
    memory_factor: int = 24
    """Objects of Python take this much more than their text."""
    address_bytes: int = 2 << 30
    """Address space that may be reserved, whether it is used or not."""
