"""Whether a new run may use the rates that it asks for, given where its weights come from.

Place in the flow: `preflight`, for a run that has no checkpoint yet. Imports no torch. Invariant: weights from a
constant phase, declared or known, are warmed up again only where the configuration says so by name.
"""

from __future__ import annotations

from cptron.checkpoint.saved_rate import SavedRate
from cptron.config.schema import Config
from cptron.data.stage_plan import StagePlan
from cptron.errors import ConfigError
from cptron.optim.schedule import learning_rate

SAME = 1e-6
"""Rates that differ by less, relatively, are the same."""
AS_DECLARED = 1e-2
"""People declare rates with few digits."""


def start_notes(
    config: Config, saved: SavedRate | None, first_step: int, scale: float = 1.0
) -> tuple[str, ...]:
    """Notes on the rates of a run whose first step is `first_step`.

    `saved` is what the starting checkpoint tells, `scale` what its run multiplied its schedule with. Raises
    `ConfigError` where that contradicts what is declared, and where the rate would rise again from the constant phase
    without `start.rewarm`.
    """
    start, optim = config.start, config.optim
    if start.mode == "random":
        return ()
    if saved is not None:
        _check_declared(config, saved, scale)
    state = start.state if start.state != "unknown" or saved is None else saved.state
    at_save = start.lr_at_save or (saved.at_save * scale if saved is not None else 0.0)
    first, highest, where = _rates(config, first_step)
    warms_up = first_step < optim.warmup_steps
    rises = warms_up or first > at_save * (1 + SAME) > 0
    if state == "constant_phase" and (rises or highest > at_save * (1 + SAME) > 0):
        how = f"a first rate of {first:g}" if rises else f"a rate of {highest:g} in {where}"
        return (_rewarmed(config, f"optim.warmup_steps={optim.warmup_steps}" if warms_up else how, at_save),)
    if state == "constant_phase" and not at_save:
        return (
            f"start.state=constant_phase with start.lr_at_save=0: nothing tells whether a first rate of {first:g} is "
            "above the base's; give start.lr_at_save where you know it",
        )
    if state == "unknown" and start.mode == "init_from":
        return (
            "start.state=unknown: nothing tells whether the base's learning rate was decayed; declare decayed or "
            "constant_phase where you know it",
        )
    if rises and not warms_up:
        return (
            f"the learning rate jumps from {at_save:g} to {first:g} at the first step; optim.warmup_steps leads there",
        )
    return ()


def _rates(config: Config, first_step: int) -> tuple[float, float, str]:
    """The first rate; and the highest with which a stage begins, and which. After its warm-up no schedule rises."""
    plan = StagePlan(config)
    found = {
        max(step, first_step): f"data.stages.{number}"
        for number, step in enumerate(plan.firsts)
        if step < config.train.steps and plan.stage(first_step) <= number + 1
    }
    rates = {
        step: learning_rate(config.optim, step, config.train.steps) * plan.lr_scale(step) for step in found
    }
    highest = max(rates, key=lambda step: rates[step])
    return rates[first_step], rates[highest], found[highest]


def _rewarmed(config: Config, how: str, at_save: float) -> str:
    """The note on a rise that was asked for by name. Raises `ConfigError` on one that was not."""
    known = f" of {at_save:g}" if at_save else ""
    if config.start.rewarm:
        return f"start.rewarm=true: {how} although the base comes from a constant phase{known}"
    use = f"optim.lr={at_save:g} and " if at_save else ""
    raise ConfigError(
        f"start.state=constant_phase: the base was saved while its rate was constant{known}, and {how} would raise "
        f"the rate again, which costs what was learned; use {use}optim.warmup_steps=0, or start.rewarm=true"
    )


def _check_declared(config: Config, saved: SavedRate, scale: float) -> None:
    at_save = saved.at_save * scale
    start, where = config.start, f"start.checkpoint={config.start.checkpoint}"
    if "unknown" not in (start.state, saved.state) and start.state != saved.state:
        raise ConfigError(
            f"start.state={start.state}, but {where} was saved at step {saved.step} in the phase {saved.phase} of its "
            f"run: {saved.state}; leave start.state out"
        )
    if start.lr_at_save and abs(start.lr_at_save - at_save) > AS_DECLARED * at_save:
        raise ConfigError(
            f"start.lr_at_save={start.lr_at_save:g}, but the run of {where} would have gone on with "
            f"{at_save:g}; leave start.lr_at_save out"
        )
