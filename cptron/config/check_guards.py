"""Rules of the guards: numbers that make sense, and a rollback that has something to go back to.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure.
"""

from __future__ import annotations

import math

from cptron.config.schema import Config
from cptron.errors import ConfigError


def check_guards(config: Config) -> None:
    """Raises `ConfigError` on the first rule broken."""
    guards = config.guards
    if not 0 < guards.spike_z < math.inf:
        raise ConfigError(f"guards.spike_z={guards.spike_z} must be more than 0; use e.g. 6")
    if guards.spike_min_history < 2:
        raise ConfigError(
            f"guards.spike_min_history={guards.spike_min_history} must be at least 2; use e.g. 32"
        )
    if guards.spike_window < guards.spike_min_history:
        raise ConfigError(
            f"guards.spike_window={guards.spike_window} must hold guards.spike_min_history="
            f"{guards.spike_min_history} values; raise it or lower the other"
        )
    if guards.skip_batches < 0:
        raise ConfigError(f"guards.skip_batches={guards.skip_batches} must not be negative; use 0 or more")
    if guards.max_actions < 1:
        raise ConfigError(f"guards.max_actions={guards.max_actions} must be at least 1; use 1 or more")
    for key, policy in (("on_spike", guards.on_spike), ("on_nonfinite", guards.on_nonfinite)):
        if policy == "rollback" and not config.checkpoint.every_steps:
            raise ConfigError(
                f"guards.{key}=rollback goes back to a checkpoint of this run, but checkpoint.every_steps=0 makes "
                f"none before the end; set it, or use guards.{key}=skip"
            )
