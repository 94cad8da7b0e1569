"""What has changed between two evaluations: by set, and as the mean of a suite's sets.

Place in the flow: two `evaluation`s -> here, by `bootstrap` -> records, `policy`. Invariant: sets are compared window
by window where the windows are the same, as two rates of the same text where only the text is, and otherwise not at
all.

Shapes: W windows of a set, P pairs of windows of a probe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.forgetting.bootstrap import Change, Interval, Unpaired, mean_change
from cptron.forgetting.evaluation import EvaluatedSet, Evaluation

SUITE_KEYS = {"old": "forgetting/old", "new": "learning/new"}
"""Under which keys a record has the change of a suite."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made."""

    seed: int
    confidence: float
    resamples: int

    def mean(self, changes: list[Change | Unpaired]) -> Interval:
        """Mean change of sets."""
        return mean_change(changes, self.seed, confidence=self.confidence, resamples=self.resamples)


def scores(found: EvaluatedSet) -> npt.NDArray[np.float64]:
    """Of a probe, what each of its sequences shows [P]: nats per token of what could be looked up in the context minus
    those of what could not."""
    losses = found.nats_W / found.tokens_W
    difference: npt.NDArray[np.float64] = losses[1::2] - losses[0::2]
    return difference


def change_of(name: str, now: EvaluatedSet, before: EvaluatedSet) -> Change | Unpaired | str:
    """The change of one set, in nats per token of the present tokenizer; or why there is none."""
    if now.facts.windows == before.facts.windows and np.array_equal(now.tokens_W, before.tokens_W):
        if now.kind != "text":
            difference = scores(now) - scores(before)
            return Change(name, difference, np.ones_like(difference))
        return Change(name, now.nats_W - before.nats_W, now.tokens_W.astype(np.float64))
    if not (now.facts.text and now.facts.text == before.facts.text):
        return "its tokens, windows or attention are others, and that the text is the same is not known"
    if now.facts.tokenizer == before.facts.tokenizer:
        return "the same text is cut or read otherwise (data.seq_length, attention), which changes a loss by itself"
    if now.bytes_W is None or before.bytes_W is None:
        return "the text is the same and the tokenizer another, but the bytes of its tokens are not known"
    bytes_per_token = now.bytes_W.sum() / now.tokens_W.sum()
    return Unpaired(
        Change(f"{name} now", now.nats_W, now.tokens_W.astype(np.float64)),
        # per byte, times the bytes of a present token
        Change(f"{name} before", before.nats_W * bytes_per_token, before.bytes_W.astype(np.float64)),
    )


def changes(now: Evaluation, before: Evaluation) -> dict[str, Change | Unpaired | str]:
    """Set -> its change, or why it has none; of every set that has a suite now."""
    found: dict[str, Change | Unpaired | str] = {}
    for name, evaluated in now.sets.items():
        if evaluated.suite:
            earlier = before.sets.get(name)
            found[name] = change_of(name, evaluated, earlier) if earlier else "it was not evaluated"
    return found


def not_comparable(now: Evaluation, before: Evaluation) -> dict[str, str]:
    """Set -> why `before` tells nothing of it."""
    return {name: change for name, change in changes(now, before).items() if isinstance(change, str)}


def suite_changes(now: Evaluation, before: Evaluation, how: Resampling) -> dict[str, Interval]:
    """`old` and `new` -> the mean change of the sets that can be compared; without a suite that has none."""
    by_suite: dict[str, list[Change | Unpaired]] = {}
    for name, change in changes(now, before).items():
        if not isinstance(change, str):
            by_suite.setdefault(now.sets[name].suite, []).append(change)
    return {suite: how.mean(by_suite[suite]) for suite in SUITE_KEYS if suite in by_suite}


def without_interval(now: Evaluation) -> list[str]:
    """Which sets make a suite's interval infinite, so that it is never an alarm and never within epsilon."""
    return [
        f"change of {name} has no interval, since it is one window, and so has none of suite {found.suite}: nothing is "
        "decided on it; evaluate more of it"
        for name, found in now.sets.items()
        if found.suite in SUITE_KEYS and len(found.nats_W) < 2
    ]


def set_record(now: Evaluation, base: Evaluation, how: Resampling) -> dict[str, Any]:
    """What an evaluation's record says of single sets: bits per byte, what probes show, and changes since the base."""
    record: dict[str, Any] = {}
    compared = changes(now, base)
    for name, found in now.sets.items():
        if found.kind == "text" and (bits := found.bits_per_byte) is not None:
            record[f"valid/{name}/bits_per_byte"] = bits
        if found.kind != "text":
            record[f"probe/{name}/score_nats"] = float(scores(found).mean())
        change = compared.get(name, "")
        if not isinstance(change, str):
            key = "valid" if found.kind == "text" else "probe"
            record |= interval_keys(f"{key}/{name}/change", how.mean([change]))
    return record


def suite_record(intervals: Mapping[str, Interval], what: str = "change") -> dict[str, Any]:
    """What an evaluation's record says of the suites."""
    record: dict[str, Any] = {}
    for suite, interval in intervals.items():
        record |= interval_keys(f"{SUITE_KEYS[suite]}/{what}", interval)
    return record


def interval_keys(prefix: str, interval: Interval) -> dict[str, float]:
    """An interval as three values of a record."""
    return {
        f"{prefix}_nats": interval.estimate,
        f"{prefix}_low": interval.low,
        f"{prefix}_high": interval.high,
    }
