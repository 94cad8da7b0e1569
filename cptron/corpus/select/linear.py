"""A linear classifier of documents on hashed n-grams: logistic regression, as fastText's, but with one answer.

Place in the flow: `steps/classifier` trains one from examples, or loads one. Invariant: the problem is convex and is
solved in a fixed order, so equal examples give an equal model; examples that are held out have no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.document import draw
from cptron.corpus.select.array_file import load_arrays, save_arrays
from cptron.corpus.select.ngrams import MOST_BUCKETS, bucket_counts
from cptron.corpus.select.sparse import SparseRows
from cptron.errors import DataError
from cptron.tokens.manifest import build_record

FORMAT = "cptron linear classifier"
MOST_NGRAM = 5
"""Words of the longest n-gram that a classifier may look at."""
LEAST_FOUND = 5
"""Held-out positive examples that a threshold must find (all, where there are fewer): one by chance is no precision."""
_ROUNDS = 300


@dataclass(frozen=True, slots=True)
class Quality:
    """Of a classifier, on the examples that were held out."""

    threshold: float
    """From which score on a document is positive."""
    precision: float
    """Share of those at or above the threshold that are positive examples."""
    recall: float
    """Share of the positive examples that are at or above it."""
    positives: int
    """Held out."""
    negatives: int
    """Held out."""


@dataclass(frozen=True, slots=True)
class _About:
    """What a file says beside the weights."""

    format: str
    bias: float
    longest: int
    quality: Quality
    arrays: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """The probability that a document is positive."""

    weights: NDArray[np.float32]
    """By bucket."""
    bias: float
    longest: int
    """Words of the longest n-gram."""
    quality: Quality

    def score(self, text: str) -> float:
        """0 to 1."""
        rows = SparseRows.of([bucket_counts(text, len(self.weights), self.longest)])
        return float(_probabilities(rows, self.weights, self.bias)[0])

    def save(self, path: Path) -> None:
        """Into a file."""
        about = {
            "format": FORMAT,
            "bias": self.bias,
            "longest": self.longest,
            "quality": asdict(self.quality),
        }
        save_arrays(path, about, {"weights": self.weights})

    @classmethod
    def load(cls, path: Path, remedy: str) -> LinearClassifier:
        """From a file. Raises DataError where it is none."""
        about, arrays = load_arrays(path, remedy)
        if about.get("format") != FORMAT:
            raise DataError(f"{path} has the format {about.get('format')!r}, must be {FORMAT!r}; {remedy}")
        try:
            return cls._checked(
                build_record(_About, {**about, "arrays": list(arrays)}, "it"), arrays["weights"]
            )
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"{path} is no classifier that can be used ({error}); {remedy}") from None

    @classmethod
    def _checked(cls, about: _About, weights: NDArray[Any]) -> LinearClassifier:
        """Raises ValueError for what no training gives."""
        if weights.ndim != 1 or weights.dtype != np.float32 or not 1 <= len(weights) <= MOST_BUCKETS:
            raise ValueError(f"weights are {weights.dtype} {list(weights.shape)}")
        if not (
            np.isfinite(weights).all() and math.isfinite(about.bias) and 1 <= about.longest <= MOST_NGRAM
        ):
            raise ValueError(f"bias {about.bias}, longest {about.longest}, or a weight is out of range")
        if not 0 <= about.quality.threshold <= 1:
            raise ValueError(f"threshold {about.quality.threshold} is not within 0 to 1")
        return cls(weights, about.bias, about.longest, about.quality)


@dataclass(frozen=True, slots=True)
class Training:
    """How a classifier is trained."""

    buckets: int
    longest: int
    penalty: float
    """Times half of the squared weights, beside the mean loss."""
    held_out: float
    """Share of the examples."""
    min_precision: float
    seed: int


def train(positives: Iterable[str], negatives: Iterable[str], how: Training) -> LinearClassifier:
    """Raises DataError where too few examples are given, or no threshold has the precision that is asked for."""
    texts = [list(dict.fromkeys(kind)) for kind in (negatives, positives)]
    rows = SparseRows.of(bucket_counts(text, how.buckets, how.longest) for kind in texts for text in kind)
    labels = np.repeat([0.0, 1.0], [len(kind) for kind in texts])
    # By the text: what is there twice must not be on both sides.
    out = np.array([draw(text, how.seed) < how.held_out for kind in texts for text in kind])
    for name, label in (("negative", 0), ("positive", 1)):
        left, held = int(((labels == label) & ~out).sum()), int(((labels == label) & out).sum())
        if not left or not held:
            raise DataError(
                f"{left + held} different {name} examples leave {left} to train and {held} held out, both must have "
                "some; add examples"
            )
    weights, bias = _fit(_taken(rows, ~out), labels[~out], how)
    stored = weights.astype(np.float32)
    scores = np.round(_probabilities(_taken(rows, out), stored, bias), 6)
    return LinearClassifier(
        stored, bias, how.longest, choose_threshold(scores, labels[out] > 0, how.min_precision)
    )


def choose_threshold(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], min_precision: float
) -> Quality:
    """The lowest threshold, thus the highest recall, from which on the precision is `min_precision` and that finds
    `LEAST_FOUND` positive examples. Raises DataError where there is none."""
    found = int(positive.sum())
    least = max(1, min(LEAST_FOUND, found))
    thresholds, first = np.unique(np.sort(scores), return_index=True)
    above = len(scores) - first  # scores at or above each threshold
    right = found - np.concatenate([[0], np.cumsum(positive[np.argsort(scores, kind="stable")])])[first]
    precisions = np.where(right >= least, right / above, 0.0)
    good = np.flatnonzero((right >= least) & (precisions >= min_precision))
    if len(good):
        return at_threshold(scores, positive, float(thresholds[good[0]]))
    best = float(precisions.max(initial=0.0))
    raise DataError(
        f"precision on held-out examples is {best:.3f} at best, must be min_precision {min_precision}; lower it or "
        "give other examples"
    )


def at_threshold(scores: NDArray[np.float64], positive: NDArray[np.bool_], threshold: float) -> Quality:
    """Precision and recall at a threshold."""
    above = scores >= threshold
    right = int((above & positive).sum())
    return Quality(
        threshold=threshold,
        precision=right / max(1, int(above.sum())),
        recall=right / max(1, int(positive.sum())),
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
    )


def _fit(rows: SparseRows, labels: NDArray[np.float64], how: Training) -> tuple[NDArray[np.float64], float]:
    """Weights and bias by Nesterov's accelerated gradient, whose step is safe since rows have unit length. Both classes
    count alike, however many examples they have."""
    share = labels.mean()
    importance = np.where(labels > 0, 0.5 / share, 0.5 / (1 - share)) / len(labels)
    values = _unit_values(rows)
    width, owner = how.buckets, rows.rows
    step = 1.0 / (0.5 + how.penalty)  # the loss bends by a quarter of |x, 1|^2 = 2 at most
    point = np.zeros(width + 1)
    ahead = point.copy()
    for number in range(_ROUNDS):
        errors = importance * (_sigmoid(rows.row_sums(values * ahead[rows.buckets]) + ahead[-1]) - labels)
        slope = np.zeros(width + 1) + np.bincount(
            rows.buckets, weights=values * errors[owner], minlength=width + 1
        )
        slope[:-1] += how.penalty * ahead[:-1]
        slope[-1] = errors.sum()
        moved = ahead - step * slope
        ahead = moved + number / (number + 3) * (moved - point)
        point = moved
    return point[:-1], float(point[-1])


def _probabilities(rows: SparseRows, weights: NDArray[np.float32], bias: float) -> NDArray[np.float64]:
    return _sigmoid(rows.row_sums(_unit_values(rows) * weights[rows.buckets].astype(np.float64)) + bias)


def _unit_values(rows: SparseRows) -> NDArray[np.float64]:
    """Logarithms of the counts, each row of unit length."""
    values = np.log1p(rows.counts.astype(np.float64))
    norms = np.sqrt(rows.row_sums(values**2))
    return np.asarray(values / norms[rows.rows])


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)))


def _taken(rows: SparseRows, wanted: NDArray[np.bool_]) -> SparseRows:
    entries = wanted[rows.rows]
    starts = np.concatenate([[0], np.cumsum(np.diff(rows.starts)[wanted])])
    return SparseRows(starts, rows.buckets[entries], rows.counts[entries])
