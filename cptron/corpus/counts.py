"""What went into each step, what came out, and why the rest did not.

Place in the flow: `work` counts a shard and stores it with the shard; `summary` adds the shards up for the report.
Invariant: at every step documents in + made = out + dropped; sums and samples do not depend on the order of shards.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cptron.corpus.document import Document, Dropped

SAMPLES = 5
"""Kept of each reason."""
_SAMPLE_CHARACTERS = 400


@dataclass(slots=True)
class Amount:
    """Documents, and bytes of their texts in UTF-8."""

    documents: int = 0
    bytes: int = 0

    def add(self, num_bytes: int, documents: int = 1) -> None:
        """Count documents of `num_bytes` together."""
        self.documents += documents
        self.bytes += num_bytes

    def plus(self, other: Amount) -> None:
        """Add another count."""
        self.add(other.bytes, other.documents)


@dataclass(slots=True)
class StepCounts:
    """One step, over some shards."""

    name: str
    came: Amount = field(default_factory=Amount)
    left: Amount = field(default_factory=Amount)
    made: int = 0
    """Documents beyond the first of each that became several."""
    changed: int = 0
    """Documents whose text is another than it was."""
    dropped: dict[str, Amount] = field(default_factory=dict)
    """By reason."""
    tally: Counter[str] = field(default_factory=Counter)
    """What else the step counts."""
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Of what was dropped, by reason: the smallest hashes of ids, which is as good as drawn at random."""
    cpu_s: float = 0.0
    """Of one core; differs from run to run."""

    def drop(self, document: Document, num_bytes: int, why: Dropped) -> None:
        """Count a document that does not go on."""
        self.dropped.setdefault(why.reason, Amount()).add(num_bytes)
        sample = {
            "key": hashlib.blake2b(
                document.id.encode("utf-8", "backslashreplace"), digest_size=8
            ).hexdigest(),
            "id": document.id,
            "detail": why.detail,
            "text": document.text[:_SAMPLE_CHARACTERS],
        }
        _keep_sample(self.samples.setdefault(why.reason, []), sample)

    def plus(self, other: StepCounts) -> None:
        """Add the same step over other shards."""
        self.came.plus(other.came)
        self.left.plus(other.left)
        self.made += other.made
        self.changed += other.changed
        self.cpu_s += other.cpu_s
        self.tally.update(other.tally)
        for reason, amount in other.dropped.items():
            self.dropped.setdefault(reason, Amount()).plus(amount)
        for reason, samples in other.samples.items():
            kept = self.samples.setdefault(reason, [])
            for sample in samples:
                _keep_sample(kept, sample)

    def as_json(self) -> dict[str, Any]:
        """What `step_counts` reads."""
        return asdict(replace(self, tally=Counter())) | {"tally": dict(self.tally)}  # asdict breaks a Counter

    @property
    def is_whole(self) -> bool:
        """Nothing is lost, nothing is there twice."""
        gone = sum(amount.documents for amount in self.dropped.values())
        return self.came.documents + self.made == self.left.documents + gone


def _keep_sample(kept: list[dict[str, str]], sample: dict[str, str]) -> None:
    if len(kept) == SAMPLES and kept[-1]["key"] <= sample["key"]:
        return
    kept.append(sample)
    kept.sort(key=lambda one: (one["key"], one["id"]))
    del kept[SAMPLES:]


def step_counts(content: Mapping[str, Any]) -> StepCounts:
    """From what `as_json` made, by way of JSON."""
    return StepCounts(
        name=content["name"],
        came=Amount(**content["came"]),
        left=Amount(**content["left"]),
        made=content["made"],
        changed=content["changed"],
        dropped={reason: Amount(**amount) for reason, amount in content["dropped"].items()},
        tally=Counter(content["tally"]),
        samples={reason: list(samples) for reason, samples in content["samples"].items()},
        cpu_s=content["cpu_s"],
    )
