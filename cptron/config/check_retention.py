"""Rules of saving and of which checkpoints stay.

Place in the flow: called by `check`. Invariant: a rule that passes here can be applied at every save.
"""

from __future__ import annotations

from cptron.config.schema import Config
from cptron.errors import ConfigError, either

METRICS = ("loss_nats_per_token", "perplexity")
"""What an evaluation measures of a validation set; lower is better."""


def check_retention(config: Config) -> None:
    """Raise `ConfigError` where a rule of retention cannot be kept."""
    checkpoint = config.checkpoint
    for milestone in checkpoint.milestones:
        if milestone.tokens < 1:
            raise ConfigError(
                f"checkpoint.milestones.{milestone.name}.tokens={milestone.tokens} must be at least 1; use 1 or more"
            )
    if checkpoint.best_metric and not checkpoint.keep_best:
        raise ConfigError(
            f"checkpoint.best_metric={checkpoint.best_metric} is only for checkpoint.keep_best, which is 0; "
            "set it, or remove the metric"
        )
    if checkpoint.keep_best:
        _check_best(config)


def _check_best(config: Config) -> None:
    checkpoint = config.checkpoint
    known = [f"valid/{valid.name}/{metric}" for valid in config.data.valid for metric in METRICS]
    if checkpoint.best_metric not in known:
        raise ConfigError(
            f"checkpoint.best_metric={checkpoint.best_metric or repr('')} must be measured for checkpoint.keep_best="
            f"{checkpoint.keep_best}; use {either(known) if known else 'a validation set, and a metric of it'}"
        )
    evaluated, saved = config.eval.every_steps, checkpoint.every_steps
    if not evaluated or not saved or saved % evaluated:
        raise ConfigError(
            f"checkpoint.every_steps={saved} must be a multiple of eval.every_steps={evaluated} for "
            f"checkpoint.keep_best={checkpoint.keep_best}, so that every save is evaluated; "
            + (f"use {evaluated} or a multiple of it" if evaluated else "set both")
        )
