"""Rules of the learning rate: values, and stretches of a schedule that follow each other.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure; a schedule that passes
has a rate for every step, and falls after its warm-up without a jump.
"""

from __future__ import annotations

from cptron.config.schema import OptimConfig
from cptron.errors import ConfigError

ANNEALED = ("wsd", "infinite")
"""Schedules that `anneal_steps` belongs to."""


def check_schedule(optim: OptimConfig, train_steps: int) -> None:
    """Raises `ConfigError` on the first rule broken."""
    _check_rates(optim)
    _check_warmup(optim, train_steps)
    _check_unused(optim)
    if optim.schedule == "infinite":
        _check_cooldown(optim)
    if optim.schedule in ANNEALED:
        _check_anneal(optim, train_steps)


def idle_keys(optim: OptimConfig) -> tuple[str, ...]:
    """Values of a schedule that passes, as `decay_steps=50`, which change no rate of it. They are no mistake: another
    schedule, by an override, may leave them behind."""
    default, ends = OptimConfig(), optim.schedule in ("cosine", "wsd") or bool(optim.anneal_steps)
    used = {
        "warmup_from": optim.warmup_steps > 1,  # the last step of a warm-up is at `lr`
        "lr_min": ends or optim.schedule == "inverse_sqrt",
        "decay_steps": ends,
        "decay_form": bool(optim.anneal_steps),
        "cooldown_form": optim.schedule == "infinite",
    }
    values = {key: getattr(optim, key) for key, is_used in used.items() if not is_used}
    return tuple(f"{key}={value}" for key, value in values.items() if value != getattr(default, key))


def _check_rates(optim: OptimConfig) -> None:
    if optim.lr <= 0:
        raise ConfigError(f"optim.lr={optim.lr} must be more than 0; use e.g. 1e-5, or an optim.preset")
    if not 0 <= optim.lr_min <= optim.lr:
        raise ConfigError(
            f"optim.lr_min={optim.lr_min} must be from 0 to optim.lr={optim.lr}; lower it or raise lr"
        )
    if not 0 <= optim.warmup_from <= optim.lr:
        raise ConfigError(
            f"optim.warmup_from={optim.warmup_from} must be from 0 to optim.lr={optim.lr}; lower it or raise lr"
        )


def _check_warmup(optim: OptimConfig, train_steps: int) -> None:
    if not 0 <= optim.warmup_steps < train_steps:
        raise ConfigError(
            f"optim.warmup_steps={optim.warmup_steps} must be from 0 to below train.steps={train_steps}; "
            f"use at most {train_steps - 1}"
        )
    if optim.decay_steps < 0 or 0 < optim.decay_steps <= optim.warmup_steps:
        raise ConfigError(
            f"optim.decay_steps={optim.decay_steps} must come after optim.warmup_steps={optim.warmup_steps}; "
            f"use at least {optim.warmup_steps + 1}, or 0 for train.steps"
        )
    if optim.schedule == "inverse_sqrt" and optim.warmup_steps == 0:
        raise ConfigError(
            "optim.warmup_steps=0 with optim.schedule=inverse_sqrt, which falls as the root of warmup_steps / step; "
            "use e.g. 100"
        )


def _check_unused(optim: OptimConfig) -> None:
    """A value that has no effect is a mistake."""
    of_infinite = {"lr_constant": optim.lr_constant, "cooldown_steps": optim.cooldown_steps}
    for key, value in of_infinite.items():
        if value and optim.schedule != "infinite":
            raise ConfigError(
                f"optim.{key}={value} belongs to optim.schedule=infinite, not {optim.schedule}; leave it out"
            )
    if optim.anneal_steps and optim.schedule not in ANNEALED:
        raise ConfigError(
            f"optim.anneal_steps={optim.anneal_steps} belongs to optim.schedule={' or '.join(ANNEALED)}, not "
            f"{optim.schedule}; leave it out"
        )


def _check_cooldown(optim: OptimConfig) -> None:
    if not 0 < optim.lr_constant <= optim.lr or optim.lr_constant < optim.lr_min:
        raise ConfigError(
            f"optim.lr_constant={optim.lr_constant} must be more than 0, from optim.lr_min={optim.lr_min} to "
            f"optim.lr={optim.lr}; use e.g. {max(optim.lr / 2, optim.lr_min):g}"
        )
    if optim.cooldown_steps < 0 or (optim.cooldown_steps == 0 and optim.lr_constant != optim.lr):
        raise ConfigError(
            f"optim.cooldown_steps={optim.cooldown_steps} must lead from optim.lr={optim.lr} to optim.lr_constant="
            f"{optim.lr_constant}; use at least 1, or 0 where both are equal"
        )


def _check_anneal(optim: OptimConfig, train_steps: int) -> None:
    if optim.anneal_steps < 0 or (optim.anneal_steps == 0 and optim.schedule == "wsd"):
        raise ConfigError(
            f"optim.anneal_steps={optim.anneal_steps} must be the length of the decay of optim.schedule="
            f"{optim.schedule}; use e.g. {max(1, train_steps // 10)}, or optim.schedule=constant for none"
        )
    end, key = optim.decay_steps or train_steps, "optim.decay_steps" if optim.decay_steps else "train.steps"
    before = optim.warmup_steps + optim.cooldown_steps
    if optim.anneal_steps and end - optim.anneal_steps < before:
        raise ConfigError(
            f"optim.anneal_steps={optim.anneal_steps} before {key}={end} would begin before warm-up and cool-down end, "
            f"at step {before}; use at most {max(end - before, 0)}, or raise {key}"
        )
    if optim.decay_form == "geometric" and optim.anneal_steps and optim.lr_min == 0:
        raise ConfigError(
            f"optim.lr_min={optim.lr_min} is never reached by optim.decay_form=geometric; use e.g. {optim.lr / 100:g}"
        )
