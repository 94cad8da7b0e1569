"""What an evaluation counted of texts, and what it reports: loss, perplexity, and bits per byte by group.

Place in the flow: filled by `perplexity` (the engine) and by `reference` (transformers), printed by `main`.
Invariant: every predicted token belongs to the group of the document it is a token of, so that the groups add
up to the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MAX_EXPONENT = 700.0
"""exp() of more is no number of 64 bits."""


@dataclass(slots=True)
class Sums:
    """Of one group of documents, or of all."""

    nats: float = 0.0
    """Loss summed over the predicted tokens."""
    tokens: int = 0
    """Predicted tokens, ends of documents included."""
    documents: int = 0
    """Documents with at least one token in what was evaluated."""
    bytes: int = 0
    """Size in UTF-8 of the texts of these documents."""
    cut: bool = False
    """A document was evaluated in part (`--max-tokens`), so that `bytes` is not the size of what was predicted."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.documents + other.documents,
            self.bytes + other.bytes,
            self.cut or other.cut,
        )

    def report(self) -> dict[str, Any]:
        """Keys of the printed record; those of bytes only where their size is known."""
        found = {**loss_keys(self.nats / max(1, self.tokens), self.tokens), "documents": self.documents}
        if not self.cut and self.bytes:
            found |= {"bytes": self.bytes, "bits_per_byte": self.nats / math.log(2) / self.bytes}
        return found


class Measure:
    """Sums by group, in the order in which the groups appear; without groups all is in the group ''."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._sums: list[Sums] = []

    def add_document(self, group: str, num_bytes: int, *, cut: bool) -> int:
        """Count a document; returns the number of its group."""
        number = self._numbers.setdefault(group, len(self._sums))
        if number == len(self._sums):
            self._sums.append(Sums())
        self._sums[number] += Sums(documents=1, bytes=num_bytes, cut=cut)
        return number

    def add_losses(self, number: int, nats: float, tokens: int) -> None:
        """Count predicted tokens of the group with this number."""
        self._sums[number] += Sums(nats=nats, tokens=tokens)

    @property
    def total(self) -> Sums:
        """Of all groups."""
        return sum(self._sums, Sums())

    def records(self, name: str, by: str | None) -> list[dict[str, Any]]:
        """What is printed of a set: with `by` a record for each group, then that of the whole."""
        groups = zip(self._numbers, self._sums, strict=True) if by else ()
        parts = [{"data": name, "by": by, "group": group, **sums.report()} for group, sums in groups]
        return [*parts, {"data": name, **self.total.report()}]


def loss_keys(loss_nats_per_token: float, tokens: int) -> dict[str, Any]:
    """What is reported of every kind of data."""
    return {
        "loss_nats_per_token": loss_nats_per_token,
        "perplexity": math.exp(min(loss_nats_per_token, MAX_EXPONENT)),
        "tokens": tokens,
    }
