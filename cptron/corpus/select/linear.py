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
from cptron.corpus.select.promise import Quality, Scored, promised_threshold, quality_at, thresholds
from cptron.corpus.select.sparse import SparseRows
from cptron.errors import DataError
from cptron.tokens.manifest import build_record

FORMAT = "cptron linear classifier 2"
MOST_NGRAM = 5
"""Words of the longest n-gram that a classifier may look at."""
CHOOSING = 0.5
"""Examples that choose a row of thresholds, for each that is held out."""
_ROUNDS = 300


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
    """Share of the examples that the precision is promised on; half as many choose a row of thresholds."""
    min_precision: float
    confidence: float
    """Of the promise."""
    threshold: float
    """Of the user, of which nothing is promised; 0: the lowest that promises `min_precision`."""
    seed: int


def train(positives: Iterable[str], negatives: Iterable[str], how: Training) -> LinearClassifier:
    """Raises DataError where too few examples are given, or no threshold promises the precision that is asked for."""
    texts = [list(dict.fromkeys(kind)) for kind in (negatives, positives)]
    rows = SparseRows.of(bucket_counts(text, how.buckets, how.longest) for kind in texts for text in kind)
    positive = np.repeat([False, True], [len(kind) for kind in texts])
    # By the text: what is there twice must not be on two sides.
    drawn = np.array([draw(text, how.seed) for kind in texts for text in kind])
    held, choosing = drawn < how.held_out, (drawn >= how.held_out) & (drawn < how.held_out * (1 + CHOOSING))
    seen = ~(held | choosing)
    for name, mine in (("negative", ~positive), ("positive", positive)):
        counts = [int((mine & part).sum()) for part in (seen, choosing, held)]
        if not all(counts):
            raise DataError(
                f"{sum(counts)} different {name} examples leave {counts[0]} to train, {counts[1]} to choose thresholds "
                f"and {counts[2]} held out, all must have some; add examples"
            )
    weights, bias = _fit(_taken(rows, seen), positive[seen].astype(np.float64), how)
    stored = weights.astype(np.float32)

    def scored(part: NDArray[np.bool_]) -> Scored:
        return Scored(np.round(_probabilities(_taken(rows, part), stored, bias), 6), positive[part])

    if how.threshold:
        quality = quality_at(how.threshold, scored(held), how.confidence)
    else:
        row = thresholds(scored(choosing), how.confidence)
        quality = promised_threshold(row, scored(held), how.min_precision, how.confidence)
    return LinearClassifier(stored, bias, how.longest, quality)


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
