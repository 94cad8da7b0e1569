"""Facts -> choices: the whole decision, as one pure function.

Place in the flow: `main` reads facts from disk, asks here, and writes the answer. Invariant: equal facts give equal
advice; every choice cites evidence; what is written passes the trainer's own rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from cptron.advise.amounts import Amounts, plan
from cptron.advise.choice import Choice, Value
from cptron.advise.evidence import EVIDENCE
from cptron.advise.facts import Facts, check_facts
from cptron.advise.rules_data import data_choices
from cptron.advise.rules_keep import keep_choices
from cptron.advise.rules_rate import rate_choices
from cptron.advise.rules_watch import held_given, watch_choices
from cptron.advise.shift import Shift, judge

VERSION = 1
"""Of the JSON form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The answer."""

    facts: Facts
    shift: Shift
    amounts: Amounts
    given: dict[str, Value]
    """Keys that are facts and no choices."""
    choices: tuple[Choice, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was not known, and how to find out; each thing once."""
        parts = (part for choice in self.choices for part in choice.unknown.split("; ") if part)
        return tuple(dict.fromkeys(parts))

    @property
    def cited(self) -> tuple[str, ...]:
        """Evidence that a choice cites or that disputes it, in the table's order."""
        names = {name for choice in self.choices for name in choice.evidence}
        names |= {other for choice in self.choices for _, other in choice.disputes}
        return tuple(name for name in EVIDENCE if name in names)

    def values(self) -> dict[str, Value]:
        """Every key that is written, facts first."""
        return {**self.given, **{key: value for choice in self.choices for key, value in choice.sets.items()}}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "version": VERSION,
            "facts": asdict(self.facts),
            "shift": asdict(self.shift),
            "tokens": self.amounts.tokens,
            "epochs": dict(self.amounts.epochs),
            "given": self.given,
            "choices": [choice.to_dict() for choice in self.choices],
            "unknown": list(self.unknown),
            "evidence": {name: asdict(EVIDENCE[name]) for name in self.cited},
        }


def advise(facts: Facts) -> Advice:
    """What to do with these facts. Raises `ConfigError`, in one line, where nothing sensible can be said."""
    check_facts(facts)
    shift = judge(facts)
    amounts = plan(facts, shift.kind)
    choices = [
        *data_choices(facts, shift, amounts),
        *rate_choices(facts, shift, amounts),
        *keep_choices(facts),
        *watch_choices(facts, amounts),
    ]
    _require_once(choices)
    return Advice(facts=facts, shift=shift, amounts=amounts, given=_given(facts), choices=tuple(choices))


def _given(facts: Facts) -> dict[str, Value]:
    base = facts.base
    found: dict[str, Value] = {
        "run.dir": facts.run_dir,
        f"start.{'checkpoint' if base.kind == 'checkpoint' else 'hugging_face'}": base.path,
    }
    if base.state_from == "declared":
        found |= {
            f"start.{key}": rate
            for key, rate in (("lr_at_save", base.lr_at_save), ("lr_peak", base.lr_peak))
            if rate
        }
    for role, corpora in (("new", facts.new), ("replay", (*facts.replay, *facts.chat))):
        for corpus in corpora:
            found |= {
                f"data.sources.{corpus.name}.path": corpus.path,
                f"data.sources.{corpus.name}.role": role,
            }
    for held in facts.valid:
        found |= held_given(held)
    found["train.micro_batch_size"] = 1
    return found


def _require_once(choices: Iterable[Choice]) -> None:
    """A key that two choices set would be decided by their order."""
    keys = [key for choice in choices for key in choice.sets]
    assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)
