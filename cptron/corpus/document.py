"""A document of a corpus, and what a step may make of it.

Place in the flow: `read` makes documents, steps take and return them, `shard_file` stores them.
Invariant: a document's `id` is the name of the place it came from, so it depends on neither time, machine nor worker;
everything random about a document is drawn from that name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text on its way through a pipeline."""

    text: str
    """Without lone surrogates: it can be written in UTF-8."""
    id: str
    """`SOURCE/FILE#PLACE`: relative file name, then the byte where its line begins or the number of its row."""
    source: str
    """Name of the input in the configuration."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else its record held, and what steps found; values as JSON has them. Never changed in place."""

    @property
    def num_bytes(self) -> int:
        """Of the text in UTF-8: what all counts of bytes count."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    def with_text(self, text: str) -> Document:
        """The same document with another text; itself where the text is the same."""
        return self if text == self.text else replace(self, text=text)

    def with_meta(self, **found: Any) -> Document:
        """The same document that also says what a step found."""
        return replace(self, meta={**self.meta, **found})


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a step does not let a document through."""

    reason: str
    """One of few, in `snake_case`: documents are counted by it."""
    detail: str = ""
    """For people, about this document: `0.83 of its lines are bullets`; shown with samples of what was dropped."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One of several documents that a step made, which it does not let through: counted and shown as a dropped one."""

    document: Document
    why: Dropped


Result = Document | Dropped | tuple[Document | Rejected, ...]
"""What a step makes of a document: it again (perhaps changed), nothing, or several in its place (never an empty tuple),
whose ids begin with its own."""


def draw(document_id: str, seed: int) -> float:
    """A number in [0, 1) that only `document_id` and `seed` decide."""
    digest = hashlib.blake2b(
        document_id.encode("utf-8", "backslashreplace"), digest_size=8, key=seed.to_bytes(8, "little")
    )
    return int.from_bytes(digest.digest(), "little") / 2**64
