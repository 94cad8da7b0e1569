"""What a run's checkpoint tells of its learning rate, from the configuration stored in it.

Place in the flow: a start from another run's checkpoint, `cptron anneal`, a resume with a changed schedule and
`cptron inspect` ask. Imports no torch. Invariant: derived, never stored: the rate is a function of the step and the
configuration, and both are in the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cptron.checkpoint.layout import STATE, Manifest
from cptron.config.check_schedule import check_schedule
from cptron.config.load import load_values
from cptron.config.schema import Config
from cptron.data.stage_plan import StagePlan
from cptron.errors import CheckpointError, ConfigError
from cptron.forgetting.reaction import Reaction
from cptron.json_text import parse_json
from cptron.optim.phases import DECAYED, Phase, is_constant_at, phase_at
from cptron.optim.schedule import learning_rate


@dataclass(frozen=True, slots=True)
class SavedRate:
    """Where the run stood in its schedule."""

    config: Config
    """Of the run that saved the checkpoint."""
    step: int
    phase: Phase
    """Which the next step of that run would have belonged to."""
    state: Literal["decayed", "constant_phase", "unknown"]
    """In the words of `start.state`; `unknown` between the two."""
    at_save: float
    """Rate of the next step of that run."""
    peak: float
    """Highest rate of that run's schedule."""


def saved_rate(manifest: Manifest) -> SavedRate | None:
    """None for a checkpoint that no run has saved, and where this version does not understand the stored
    configuration."""
    if not manifest.config:
        return None
    try:
        config = load_values(manifest.config, "the stored configuration").config
        check_schedule(config.optim, config.train.steps)
        return _saved_rate(config, manifest.step)
    except (ConfigError, OverflowError):  # no run has counted that many steps
        return None


def scale_at_save(saved: SavedRate, checkpoint: Path, *, with_monitor: bool = True) -> float:
    """What the run of a checkpoint multiplies its schedule with after it: the scale of its stage and, `with_monitor`,
    what its forgetting monitor has made of it, which a branch goes on with. Raises `CheckpointError`."""
    scale, path = StagePlan(saved.config).lr_scale(saved.step), checkpoint / STATE
    if not with_monitor or not path.is_file():
        return scale
    try:
        return (
            scale
            * Reaction.from_dict(parse_json(path.read_text()).get("reaction", Reaction().to_dict())).lr_factor
        )
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from None


def _saved_rate(config: Config, step: int) -> SavedRate:
    optim, steps = config.optim, config.train.steps
    phase = phase_at(optim, step, steps)
    state: Literal["decayed", "constant_phase", "unknown"] = "unknown"
    if is_constant_at(optim, step, steps):
        state = "constant_phase"
    elif phase.name == DECAYED:
        state = "decayed"
    return SavedRate(config, step, phase, state, learning_rate(optim, step, steps), optim.lr)
