"""Which stage each step of a run will belong to, and how many tokens come before it.

Place in the flow: a configuration -> here -> shown rates, and the grace window of the forgetting monitor. Imports no
torch. Invariant: a plan by whole batches; what is drawn is for `stages` and the ledger to say.
"""

from __future__ import annotations

import bisect
import math
from itertools import accumulate

from cptron.config.schema import Config
from cptron.data.open import stages_of
from cptron.data.stages import Stage, stage_steps


class StagePlan:
    """Which stage each step belongs to, counted by whole batches: a batch of packed documents that holds a little less
    can move the end of a stage by a step."""

    def __init__(self, config: Config) -> None:
        self.stages = stages_of(config) or (Stage((), global_batch_size=config.train.global_batch_size),)
        self.has_stages = bool(config.data.stages)
        self._per_batch = [
            float(stage.global_batch_size * (stage.seq_length or config.data.seq_length))
            for stage in self.stages
        ]
        lengths = stage_steps(self.stages, self._per_batch)
        self.firsts = [int(first) for first in accumulate(lengths[:-1], initial=0.0) if first < math.inf]
        """First step of each stage that there is, from 0."""

    def stage(self, step: int) -> int:
        """Number of the stage, from 1, as metrics have it."""
        return bisect.bisect_right(self.firsts, step)

    def lr_scale(self, step: int) -> float:
        """What the schedule's rate is multiplied by."""
        return self.stages[self.stage(step) - 1].lr_scale

    def tokens_before(self, step: float) -> float:
        """Of whole batches; a part of a step counts as that part of its batch."""
        ends = [*self.firsts[1:], step]
        return math.fsum(
            per_batch * max(0, min(step, end) - first)
            for first, end, per_batch in zip(self.firsts, ends, self._per_batch, strict=False)
        )
