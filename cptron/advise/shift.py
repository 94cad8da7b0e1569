"""How far the new data are from what the base knows: weak, moderate or strong.

Place in the flow: first step of `advice`; replay and rate follow from it. Invariant: pure, and a larger gap or another
language never makes the shift weaker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cptron.advise.facts import Facts, StepZeroLoss

Kind = Literal["weak", "moderate", "strong"]
ORDER: tuple[Kind, ...] = ("weak", "moderate", "strong")

WEAK_BELOW_NATS = 0.6
"""A gap below it, in nats per token, is a weak shift. A rule of thumb, as the next one."""
STRONG_FROM_NATS = 1.2


@dataclass(frozen=True, slots=True)
class Shift:
    """The verdict."""

    kind: Kind
    why: str
    gap_nats: float | None
    """Loss on new less loss on old data, in nats per token of the old data; None: not measured."""
    unknown: str
    """What was not known, and how to find out; empty where all was."""


def judge(facts: Facts) -> Shift:
    """The larger of what the gap and the language say; moderate where neither is known."""
    gap = gap_nats(facts.losses)
    by_gap: Kind | None = None
    words = []
    if gap is not None:
        by_gap = "weak" if gap < WEAK_BELOW_NATS else "strong" if gap >= STRONG_FROM_NATS else "moderate"
        words.append(
            f"the base's loss on new data is {gap:+.2f} nats per token against old data, which is {by_gap} "
            f"(below {WEAK_BELOW_NATS} weak, from {STRONG_FROM_NATS} strong)"
        )
    if facts.language == "other":
        words.append("another language or modality is declared, which is strong whatever the gap")
        if by_gap in ("weak", "moderate"):
            words.append("the two disagree: a base that knows the language already needs less replay")
        return Shift("strong", "; ".join(words), gap, "" if gap is not None else _HOW)
    if by_gap is not None:
        return Shift(by_gap, "; ".join(words), gap, "")
    return Shift(
        "moderate", "neither a gap of losses nor another language is known: taken as moderate", None, _HOW
    )


_HOW = (
    "how far the new data are from what the base knows: `cptron eval --checkpoint BASE --data new=... old=...` "
    "writes losses for --losses, or --measure makes them"
)


def gap_nats(losses: Sequence[StepZeroLoss]) -> float | None:
    """Mean loss on new less mean loss on old data; None unless both are known.

    Where bits per byte of all sets are known the ratio of those is taken, times the old loss per token: tokens of
    another language are of another size.
    """
    new = [loss for loss in losses if loss.suite == "new"]
    old = [loss for loss in losses if loss.suite == "old"]
    if not new or not old:
        return None
    old_nats = _mean([loss.nats_per_token for loss in old])
    new_bits = [loss.bits_per_byte for loss in new if loss.bits_per_byte]
    old_bits = [loss.bits_per_byte for loss in old if loss.bits_per_byte]
    if len(new_bits) == len(new) and len(old_bits) == len(old):
        return old_nats * (_mean(new_bits) / _mean(old_bits) - 1)
    return _mean([loss.nats_per_token for loss in new]) - old_nats


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
