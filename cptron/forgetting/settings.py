"""What a configuration asks of the monitor.

Place in the flow: configuration -> here -> the monitor and its parts. Imports no torch. Invariant: pure.
"""

from __future__ import annotations

from cptron.config.schema import Config
from cptron.data.stage_plan import StagePlan
from cptron.forgetting.compare import Resampling
from cptron.forgetting.policy import Rules

GRACE_SHARE = 0.02
"""Of the run's steps."""


def is_watched(config: Config) -> bool:
    """Whether there is anything to monitor."""
    forgetting = config.forgetting
    has_probe = forgetting.induction_sequences or forgetting.mapping_sequences
    return bool(has_probe) or any(valid.suite for valid in config.data.valid)


def rules_of(config: Config, begun_step: int = 0) -> Rules:
    """What counts as forgetting in a run that began at `begun_step`, as a branch does."""
    forgetting = config.forgetting
    return Rules(
        epsilon_nats=forgetting.epsilon_nats,
        patience=forgetting.patience,
        grace_tokens=forgetting.grace_tokens or _grace_tokens(config, begun_step),
    )


def _grace_tokens(config: Config, begun_step: int) -> int:
    """Of what is left of the warm-up, or of a part of the run, in batches of the stages that these steps are in."""
    left = config.train.steps - begun_step
    steps = max(config.optim.warmup_steps - begun_step, GRACE_SHARE * left, 0.0)
    plan = StagePlan(config)
    return round(plan.tokens_before(begun_step + steps) - plan.tokens_before(begun_step))


def resampling_of(config: Config) -> Resampling:
    """How intervals are made."""
    forgetting = config.forgetting
    return Resampling(config.run.seed, forgetting.confidence, forgetting.resamples)
