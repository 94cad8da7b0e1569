"""Replaces what points at a person by a placeholder that says what stood there.

Place in the flow: a map step; behind `normalise`, so that odd blanks do not hide a number.
Invariant: what is not replaced stays as it is, character by character; every replacement is counted by its kind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cptron.corpus.document import Document, Dropped, Result
from cptron.corpus.pii.spans import Kind, find_pii
from cptron.corpus.step import MapStep, Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is replaced, and by what."""

    kinds: tuple[Kind, ...] = ("email", "ip_address", "phone", "card", "iban")
    """Cards must pass Luhn and be of a known issuer, accounts modulo 97 and the length of their country."""
    placeholder: str = "<{kind}>"
    """`{kind}` becomes EMAIL, IP_ADDRESS, PHONE, CARD or IBAN."""
    public_addresses_only: bool = True
    """Leave private, local and documentation addresses alone: they are nobody's."""
    drop_above: int = 0
    """Drop documents with more replacements than this (lists of contacts); 0 for no limit."""


class Step(MapStep[Config]):
    """See the module."""

    @classmethod
    def problem(cls, config: Config) -> str:
        """See `Step`."""
        if config.placeholder.count("{kind}") != 1 or config.placeholder.replace("{kind}", "").count("{"):
            return f"placeholder {config.placeholder!r} must hold {{kind}} once; write <{{kind}}>"
        if config.drop_above < 0:
            return f"drop_above {config.drop_above} must be 0 or more; correct it"
        return ""

    def apply(self, document: Document, tally: Tally) -> Result:
        """See `MapStep`."""
        text, config = document.text, self.config
        spans = find_pii(text, config.kinds, public_addresses_only=config.public_addresses_only)
        if not spans:
            return document
        if config.drop_above and len(spans) > config.drop_above:
            return Dropped("too_much", f"{len(spans)} places")
        tally.update(Counter(kind for _, _, kind in spans))
        return document.with_text(replaced(text, spans, config.placeholder))


def replaced(
    text: str, spans: list[tuple[int, int, Kind]] | list[tuple[int, int, str]], placeholder: str
) -> str:
    """`text` with a placeholder for each of `spans`, which are in order and do not overlap."""
    parts: list[str] = []
    last = 0
    for start, end, kind in spans:
        parts += [text[last:start], placeholder.replace("{kind}", kind.upper())]
        last = end
    return "".join([*parts, text[last:]])
