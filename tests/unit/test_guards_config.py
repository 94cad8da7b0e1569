"""Rules of the `guards` section."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cptron.config.check_guards import check_guards
from cptron.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    GuardsConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from cptron.errors import ConfigError

CONFIG = Config(
    run=RunConfig(dir="runs/a"),
    data=DataConfig(seq_length=8, sources=()),
    train=TrainConfig(steps=1, global_batch_size=1),
    optim=OptimConfig(lr=1e-4),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike_z": 0.0}, "guards.spike_z=0.0 must be more than 0"),
        ({"spike_z": float("nan")}, "guards.spike_z=nan must be more than 0"),
        ({"spike_min_history": 1}, "guards.spike_min_history=1 must be at least 2"),
        ({"spike_window": 16}, "guards.spike_window=16 must hold guards.spike_min_history=32"),
        ({"skip_batches": -1}, "guards.skip_batches=-1 must not be negative"),
        ({"max_actions": 0}, "guards.max_actions=0 must be at least 1"),
        ({"on_spike": "rollback"}, "guards.on_spike=rollback goes back to a checkpoint"),
        ({"on_nonfinite": "rollback"}, "guards.on_nonfinite=rollback goes back to a checkpoint"),
    ],
    ids=str,
)
def test_a_broken_rule_is_named(change: dict[str, Any], message: str) -> None:
    """With value, rule and remedy."""
    with pytest.raises(ConfigError, match=message):
        check_guards(replace(CONFIG, guards=GuardsConfig(**change)))


def test_a_rollback_with_checkpoints_passes() -> None:
    """And so do the defaults."""
    check_guards(CONFIG)
    guards = GuardsConfig(on_spike="rollback", on_nonfinite="rollback")
    check_guards(replace(CONFIG, guards=guards, checkpoint=CheckpointConfig(every_steps=5)))
