"""One decision of the advice: keys and values, why, on what evidence, and what was not known.

Place in the flow: made by `rules_*`, collected by `advice`, written by `written`. Invariant: every choice cites
evidence that exists, and says how strong that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cptron.advise.evidence import EVIDENCE, Strength, strength_of

Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A decision."""

    sets: Mapping[str, Value]
    """Dotted key of the configuration -> value; elements of lists go by name, as `data.sources.web.token_share`."""
    why: str
    evidence: tuple[str, ...]
    """Names of entries in `EVIDENCE`."""
    above: str = ""
    """Section or key that the comment stands above; empty: the first key that is set."""
    unknown: str = ""
    """What was not known, and how to find out."""

    def __post_init__(self) -> None:
        assert self.evidence and set(self.evidence) <= EVIDENCE.keys(), self.evidence
        assert self.sets, self.why

    @property
    def strength(self) -> Strength:
        """Of the evidence."""
        return strength_of(self.evidence)

    @property
    def disputes(self) -> tuple[tuple[str, str], ...]:
        """(cited entry, entry that says otherwise), each pair once."""
        pairs = {tuple(sorted((name, other))) for name in self.evidence for other in EVIDENCE[name].against}
        cited = {(a, b) if a in self.evidence else (b, a) for a, b in pairs}
        return tuple(sorted(cited))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **asdict(self),
            "strength": self.strength,
            "disputes": [list(pair) for pair in self.disputes],
        }
