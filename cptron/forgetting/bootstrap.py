"""How sure a change of loss is: a paired bootstrap over the windows of the validation sets.

Place in the flow: losses by window before and now -> here -> `policy` and `select`. Invariant: the same windows are
drawn at every evaluation of a run, so that two of its intervals differ by what the model learned and not by chance.

Shapes: W windows of a set, R resamples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95
_AT_ONCE = 1 << 22
"""Windows drawn at a time."""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean change, and where it lies with the confidence asked for."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Change:
    """What a set's losses have become, window by window."""

    name: str
    nats_W: Float64Array
    """Loss now minus loss before, summed over the window."""
    weight_W: Float64Array
    """Tokens of the window, or anything else that the change is per."""

    def __post_init__(self) -> None:
        assert self.nats_W.shape == self.weight_W.shape and len(self.nats_W), (
            "windows are paired, and there is one"
        )

    @property
    def estimate(self) -> float:
        """Change per weight."""
        return float(self.nats_W.sum() / self.weight_W.sum())

    @property
    def num_windows(self) -> int:
        """W."""
        return len(self.nats_W)

    def deviations(self, seed: int, confidence: float, resamples: int) -> Float64Array:
        """Change of each resample minus that of the set [R], widened for its number of windows."""
        generator = _generator(seed, self.name, self.num_windows)
        found = []
        at_once = max(1, _AT_ONCE // self.num_windows)
        for first in range(0, resamples, at_once):
            count = min(at_once, resamples - first)
            drawn_RW = generator.integers(0, self.num_windows, (count, self.num_windows))
            found.append(self.nats_W[drawn_RW].sum(1) / self.weight_W[drawn_RW].sum(1))
        widened: Float64Array = (np.concatenate(found) - self.estimate) * _widening(
            self.num_windows, confidence
        )
        return widened


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Two losses of the same text in windows that do not correspond, as those of two tokenizers do not.

    Each is resampled by itself. What makes a passage hard for both models is not cancelled as in pairs, so that the
    interval is wider than it would have to be.
    """

    now: Change
    before: Change

    @property
    def estimate(self) -> float:
        """Loss now minus loss before."""
        return self.now.estimate - self.before.estimate

    @property
    def num_windows(self) -> int:
        """Of the one that has fewer."""
        return min(self.now.num_windows, self.before.num_windows)

    def deviations(self, seed: int, confidence: float, resamples: int) -> Float64Array:
        """As those of a `Change`."""
        deviations: Float64Array = self.now.deviations(seed, confidence, resamples) - self.before.deviations(
            seed, confidence, resamples
        )
        return deviations


def mean_change(
    changes: Sequence[Change | Unpaired],
    seed: int,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over sets of each set's change per weight, with an interval.

    Windows are drawn with replacement, before and now together; each set for itself. The interval is the percentile
    interval, widened about the estimate by t / z * sqrt(W / (W - 1)) of each set's W (Hesterberg 2015, "What teachers
    should know about the bootstrap", section 4.3): without that it is too narrow when windows are few. A set of one
    window has no interval: the ends are infinite.
    """
    estimate = float(np.mean([change.estimate for change in changes]))
    if min(change.num_windows for change in changes) < 2:
        return Interval(estimate, -math.inf, math.inf)
    deviation_R = np.mean([change.deviations(seed, confidence, resamples) for change in changes], axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(deviation_R, [tail, 1 - tail])
    return Interval(estimate, estimate + float(low), estimate + float(high))


def _generator(seed: int, name: str, num_windows: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}|{name}|{num_windows}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _widening(num_windows: int, confidence: float) -> float:
    """sqrt(W / (W - 1)) * t / z, with Student's quantile by its expansion in the degrees of freedom (Abramowitz and
    Stegun 26.7.5)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    free = num_windows - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return math.sqrt(num_windows / free) * t / z
