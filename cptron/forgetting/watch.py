"""What the monitor remembers between evaluations: part of the run's state, in JSON.

Place in the flow: in every checkpoint, and in every line of the journal. Imports no torch. Invariant: with the rules it
determines what the next evaluation means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from cptron.forgetting.alarms import GapState, RepetitionState
from cptron.forgetting.policy import PolicyState
from cptron.typed import require_types


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one source, in training since the last evaluation."""

    nats: float = 0.0
    tokens: int = 0


_BEGINNING = {"begun_step": 0, "begun_tokens": 0}
"""Of every run of earlier versions, which did not write it down."""


@dataclass(frozen=True, slots=True)
class Watch:
    """All of it."""

    policy: PolicyState = field(default_factory=PolicyState)
    gap: GapState = field(default_factory=GapState)
    repetition: Mapping[str, RepetitionState] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)
    lines: int = 0
    """Of the journal, that are in this state or lie ahead of it."""
    begun_step: int = 0
    """At which this run began: 0, or where it branched from another. The grace window counts from there."""
    begun_tokens: int = 0
    """Trained until then."""

    @classmethod
    def from_dict(cls, saved: Any) -> Self:
        """What `to_dict` returned. Raises ValueError on anything else."""
        try:
            if isinstance(saved, Mapping) and not _BEGINNING.keys() & saved.keys():
                saved = {**_BEGINNING, **saved}
            values = _exactly(cls, saved)
            found = cls(
                PolicyState.from_dict(values["policy"]),
                GapState(**_exactly(GapState, values["gap"])),
                {
                    name: RepetitionState(**_exactly(RepetitionState, state))
                    for name, state in values["repetition"].items()
                },
                {name: Seen(**_exactly(Seen, seen)) for name, seen in values["seen"].items()},
                values["lines"],
                values["begun_step"],
                values["begun_tokens"],
            )
            require_types(found)
            for part in (found.gap, *found.repetition.values(), *found.seen.values()):
                require_types(part)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"is none of a monitor ({error})") from None
        counts = (
            found.lines,
            found.begun_step,
            found.begun_tokens,
            found.gap.above,
            *(seen.tokens for seen in found.seen.values()),
            *(state.in_a_row for state in found.repetition.values()),
        )
        if not all(0 <= count < 2**62 for count in counts):
            raise ValueError("must count from 0")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def learned(self, nats_by_source: Mapping[str, float], tokens_by_source: Mapping[str, int]) -> Watch:
        """After one more step."""
        seen = dict(self.seen)
        for name, tokens in tokens_by_source.items():
            if tokens:
                before = seen.get(name, Seen())
                seen[name] = Seen(before.nats + nats_by_source[name], before.tokens + tokens)
        return replace(self, seen=seen)

    def train_nats(self, names: list[str]) -> float | None:
        """Loss per token of these sources since the last evaluation; None where nothing was drawn from them."""
        found = [self.seen[name] for name in names if name in self.seen]
        tokens = sum(seen.tokens for seen in found)
        return sum(seen.nats for seen in found) / tokens if tokens else None


def _exactly(cls: Any, values: Any) -> Mapping[str, Any]:
    """The values of all fields of a dataclass, and no others. Raises TypeError."""
    names = {field.name for field in fields(cls)}
    if not isinstance(values, Mapping) or set(values) != names:
        raise TypeError(f"must hold {', '.join(sorted(names))}")
    return values
