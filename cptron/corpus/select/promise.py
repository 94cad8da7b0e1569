"""The threshold of a classifier, with a precision that can be promised: a lower confidence bound, not an estimate.

Place in the flow: `linear.train` chooses by it. Invariant: the examples that the promise is measured on decide nothing
but how far down a fixed row of thresholds goes.

A precision that is estimated on the examples which chose the threshold is too good: of many thresholds, the luckiest is
taken. So there are two parts of unseen examples. One lays down a row of thresholds, strictest first. On the other each
is tested in turn, until one fails, against "precision is below what is asked for": the exact one-sided test of a
binomial (Clopper and Pearson 1934). In a fixed row a test is reached only after all before it have passed; thus the
chance that any of them passes wrongly is that of one test, however many there are (Maurer et al. 1995; Bauer 1991).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cptron.errors import DataError

GROWTH = 1.05
"""Of the examples above a threshold, from one of the row to the next."""
_STEPS = 1e6
"""That a bound is told in."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of a classifier, on examples that neither it nor the row of thresholds has seen."""

    threshold: float
    """From which score on a document is positive."""
    precision: float
    """Share of those at or above the threshold that are positive examples: the estimate."""
    precision_bound: float
    """What the precision is at least, with `confidence`."""
    confidence: float
    """Chance that the bound holds; of the draw of the examples."""
    recall: float
    """Share of the positive examples that are at or above it."""
    positives: int
    """Held out."""
    negatives: int
    """Held out."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Examples of one part."""

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]

    def counts(self, threshold: float) -> tuple[int, int]:
        """Positive examples at or above it, and all."""
        above = self.scores >= threshold
        return int((above & self.positive).sum()), int(above.sum())


def least_examples(precision: float, confidence: float) -> int:
    """How many examples, all of them right, promise a precision."""
    return math.ceil(math.log(1 - confidence) / math.log(precision) - 1e-9)


def lower_bound(right: int, found: int, confidence: float) -> float:
    """What a share is at least (Clopper and Pearson): the one under which `right` or more of `found` have the chance
    1 - `confidence`. Rounded down."""
    if not right:
        return 0.0
    low, high = 0.0, right / found
    for _ in range(60):
        middle = (low + high) / 2
        if _chance(right, found, middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return math.floor(low * _STEPS) / _STEPS


def promised_threshold(
    row: NDArray[np.float64], held_out: Scored, min_precision: float, confidence: float
) -> Quality:
    """The last threshold of the row up to which all promise `min_precision`. Raises DataError where there are too few
    examples for any promise, or the first does not hold."""
    positives, least = int(held_out.positive.sum()), least_examples(min_precision, confidence)
    if positives < least:
        all_right = lower_bound(positives, positives, confidence)
        raise DataError(
            f"{positives} positive examples are held out, a precision of {min_precision} needs {least} at least to be "
            f"promised at {confidence:.0%}: {_shown(all_right)} could be; add examples, raise held_out or lower "
            "min_precision"
        )
    passed = None
    for threshold in row.tolist():
        right, found = held_out.counts(threshold)
        if not found or _chance(right, found, min_precision) > 1 - confidence:
            break
        passed = threshold
    if passed is not None:
        return quality_at(passed, held_out, confidence)
    best = quality_at(float(row[0]), held_out, confidence)
    right, found = held_out.counts(best.threshold)
    promised = f"{_shown(best.precision_bound)} can be promised at {confidence:.0%}"
    raise DataError(
        f"precision is {best.precision:.3f} ({right} of {found}) on held-out examples, so that {promised}, must be "
        f"min_precision {min_precision}; lower it or give more or other examples"
    )


def _shown(bound: float) -> str:
    """Rounded down: a promise must not grow."""
    return f"{math.floor(bound * 1000) / 1000:.3f}"


def thresholds(choosing: Scored, confidence: float) -> NDArray[np.float64]:
    """The row: from the threshold with the best bound on these examples down, each with a twentieth more of them."""
    falling = np.sort(choosing.scores)[::-1]
    counts = _growing(len(falling))
    bounds = [_about_bound(*choosing.counts(float(falling[count - 1])), confidence) for count in counts]
    first = int(np.argmax(bounds))
    chosen = falling[np.array(counts[first:]) - 1]
    return np.asarray(np.unique(chosen)[::-1])


def _growing(most: int) -> list[int]:
    """1 and so on to `most`."""
    found = [1]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, math.ceil(found[-1] * GROWTH))))
    return found


def _about_bound(right: int, found: int, confidence: float) -> float:
    """Wilson's lower bound: near enough to say where the row begins, and quick."""
    z2 = NormalDist().inv_cdf(confidence) ** 2
    wrong = found - right
    return (right + z2 / 2 - math.sqrt(z2 * (right * wrong / found + z2 / 4))) / (found + z2)


def quality_at(threshold: float, held_out: Scored, confidence: float) -> Quality:
    """Precision, its bound and recall at a threshold that was not chosen on these examples."""
    right, found = held_out.counts(threshold)
    positives = int(held_out.positive.sum())
    return Quality(
        threshold=threshold,
        precision=right / max(1, found),
        precision_bound=lower_bound(right, found, confidence),
        confidence=confidence,
        recall=right / max(1, positives),
        positives=positives,
        negatives=len(held_out.scores) - positives,
    )


def _chance(right: int, found: int, share: float) -> float:
    """Of `right` or more of `found`, when each is right with a chance of `share`."""
    if not right or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, found + 1)))])  # of factorials
    counts = np.arange(right, found + 1)
    terms = logs[found] - logs[counts] - logs[found - counts]
    terms = terms + counts * math.log(share) + (found - counts) * math.log1p(-share)
    return min(1.0, math.fsum(np.exp(terms).tolist()))
