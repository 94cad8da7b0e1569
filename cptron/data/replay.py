"""Draws the blend of a logged run once more.

Place in the flow: log -> here -> `audit`. Invariant: a log passes only if every step drew of each source
exactly as many samples as the shares in force gave it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cptron.data.blend import Blend
from cptron.data.log import BEGINNING, LoggedStep
from cptron.data.source import TokenSource
from cptron.errors import DataError

_AT_ONCE = 1 << 16


class Replay:
    """Follows a log step by step. Where shares were set within a step, its samples from then on are drawn."""

    def __init__(self, sources: Mapping[str, TokenSource]) -> None:
        self._sources = sources
        self._before = BEGINNING
        self._names: list[str] = []
        self._weights: list[float] = []
        self._counts: list[int] = []
        self._blend: Blend | None = None
        self.deviations = dict.fromkeys(sources, 0.0)
        """Furthest that each source was from its share after any step since shares were set, in samples."""

    def follow(self, step: LoggedStep) -> None:
        """Draw up to where `step` stands. Raises DataError when it stands elsewhere."""
        if (step.shares, step.mix_start) != (self._before.shares, self._before.mix_start):
            self._names = sorted(name for name, share in step.shares.items() if share)
            self._weights = [
                step.shares[name] / self._sources[name].predictions_per_sample for name in self._names
            ]
            self._blend = Blend(self._weights) if self._names else None
            self._counts = [0] * len(self._names)
        self._before = step
        found = [step.cursors[name] - step.mix_start[name] for name in self._names]
        self._draw(sum(found))
        if found != self._counts:
            expected = dict(zip(self._names, self._counts, strict=True))
            raise DataError(
                f"step {step.step} of the log has drawn {dict(zip(self._names, found, strict=True))} samples since "
                f"the shares were set, they give {expected}; restore the log"
            )
        for name, count, weight in zip(self._names, found, self._weights, strict=True):
            deviation = abs(count - sum(found) * weight / sum(self._weights))
            self.deviations[name] = max(self.deviations[name], deviation)

    def _draw(self, total: int) -> None:
        while self._blend is not None and (missing := total - sum(self._counts)) > 0:
            drawn = self._blend.draw(self._counts, min(missing, _AT_ONCE))[0]
            new = np.bincount(drawn, minlength=len(self._counts)).tolist()
            self._counts = [count + more for count, more in zip(self._counts, new, strict=True)]
