"""What a configuration asks of the monitor.

Place in the flow: configuration -> here -> the monitor and its parts. Imports no torch. Invariant: pure.
"""

from __future__ import annotations

from cptron.config.schema import Config
from cptron.forgetting.compare import Resampling
from cptron.forgetting.policy import Rules

GRACE_SHARE = 0.02
"""Of the run's tokens."""


def is_watched(config: Config) -> bool:
    """Whether there is anything to monitor."""
    forgetting = config.forgetting
    has_probe = forgetting.induction_sequences or forgetting.mapping_sequences
    return bool(has_probe) or any(valid.suite for valid in config.data.valid)


def rules_of(config: Config) -> Rules:
    """What counts as forgetting."""
    forgetting, optim, train = config.forgetting, config.optim, config.train
    tokens_per_step = train.global_batch_size * config.data.seq_length
    grace_steps = max(optim.warmup_steps, GRACE_SHARE * train.steps)
    return Rules(
        epsilon_nats=forgetting.epsilon_nats,
        patience=forgetting.patience,
        grace_tokens=forgetting.grace_tokens or round(grace_steps * tokens_per_step),
    )


def resampling_of(config: Config) -> Resampling:
    """How intervals are made."""
    forgetting = config.forgetting
    return Resampling(config.run.seed, forgetting.confidence, forgetting.resamples)
