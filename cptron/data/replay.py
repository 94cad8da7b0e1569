"""Draws the blend of a logged run once more.

Place in the flow: log -> here -> `audit`. Invariant: a log passes only if after every step each source has given
exactly as many samples, since the shares were set, as they give it. What a step drew before shares were set
within it is only compared with why: a source must have reached its limit. A log does not tell under which shares
it was drawn, because a session may begin with new ones in the same step.
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
            _check_change(self._before, step)
            self._set_shares(step)
        self._before = step
        since = {name: cursor - step.mix_start[name] for name, cursor in step.cursors.items()}
        idle = sorted(name for name, count in since.items() if count and not step.shares[name])
        if idle:
            raise DataError(
                f"step {step.step} of the log has drawn from {idle}, which have no share; restore the log"
            )
        found = [since[name] for name in self._names]
        total, sum_of_weights = sum(found), sum(self._weights)
        self._draw(total)
        if found != self._counts:
            expected = dict(zip(self._names, self._counts, strict=True))
            raise DataError(
                f"step {step.step} of the log has drawn {dict(zip(self._names, found, strict=True))} samples since "
                f"the shares were set, they give {expected}; restore the log"
            )
        for name, count, weight in zip(self._names, found, self._weights, strict=True):
            deviation = abs(count - total * weight / sum_of_weights)
            self.deviations[name] = max(self.deviations[name], deviation)

    def _set_shares(self, step: LoggedStep) -> None:
        self._names = sorted(name for name, share in step.shares.items() if share)
        self._weights = [
            step.shares[name] / self._sources[name].predictions_per_sample for name in self._names
        ]
        self._blend = Blend(self._weights) if self._names else None
        self._counts = [0] * len(self._names)

    def _draw(self, total: int) -> None:
        while self._blend is not None and (missing := total - sum(self._counts)) > 0:
            drawn = self._blend.draw(self._counts, min(missing, _AT_ONCE))[0]
            new = np.bincount(drawn, minlength=len(self._counts)).tolist()
            self._counts = [count + more for count, more in zip(self._counts, new, strict=True)]


def _check_change(before: LoggedStep, step: LoggedStep) -> None:
    """Within a step shares are set only because a source has reached its limit: it was drawn, and has none now."""
    drawn = {name: start - before.cursors.get(name, 0) for name, start in step.mix_start.items()}
    drawn = {name: count for name, count in drawn.items() if count}
    if drawn and all(step.shares[name] for name in drawn):
        raise DataError(
            f"step {step.step} of the log has drawn {drawn} before its shares were set, a source that then has no "
            "share must be among them; restore the log"
        )
